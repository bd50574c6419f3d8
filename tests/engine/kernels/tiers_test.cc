#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

#include "engine/kernels/kernels.h"

namespace scion::kernels {
namespace {

using ::testing::HasSubstr;

// Sets SCION_CPU_TIER for the life of the object, and puts back what was there.
class ScopedTierVariable {
 public:
  explicit ScopedTierVariable(const char* value) {
    if (const char* old = std::getenv(kName)) old_ = old;
    if (value != nullptr) {
      setenv(kName, value, 1);
    } else {
      unsetenv(kName);
    }
  }
  ~ScopedTierVariable() {
    if (old_) {
      setenv(kName, old_->c_str(), 1);
    } else {
      unsetenv(kName);
    }
  }

 private:
  static constexpr char kName[] = "SCION_CPU_TIER";
  std::optional<std::string> old_;
};

TEST(TiersTest, PortableIsAlwaysThereAndFirst) {
  ASSERT_FALSE(SupportedTiers().empty());
  EXPECT_EQ(SupportedTiers().front(), Tier::kPortable);
  for (size_t i = 1; i < SupportedTiers().size(); ++i) EXPECT_LT(SupportedTiers()[i - 1], SupportedTiers()[i]);
}

TEST(TiersTest, EachTierHasItsOwnTable) {
  for (Tier t : SupportedTiers()) EXPECT_EQ(GetKernels(t).tier, t);
}

TEST(TiersTest, WithoutTheVariableTheFastestIsChosen) {
  for (const char* value : {static_cast<const char*>(nullptr), ""}) {
    const ScopedTierVariable variable(value);
    ASSERT_TRUE(ChooseTier().ok());
    EXPECT_EQ(*ChooseTier(), SupportedTiers().back());
  }
}

TEST(TiersTest, TheVariableChoosesAnySupportedTier) {
  for (Tier t : SupportedTiers()) {
    const ScopedTierVariable variable(std::string(TierName(t)).c_str());
    ASSERT_TRUE(ChooseTier().ok());
    EXPECT_EQ(*ChooseTier(), t);
  }
}

TEST(TiersTest, AnUnknownNameIsRefusedWithTheListOfThoseThatRun) {
  for (const char* value : {"AVX512", "avx", "avx2 ", "portable ", "neon"}) {
    const ScopedTierVariable variable(value);
    const absl::StatusOr<Tier> tier = ChooseTier();
    ASSERT_EQ(tier.status().code(), absl::StatusCode::kInvalidArgument) << value;
    const std::string message(tier.status().message());
    EXPECT_THAT(message, HasSubstr("SCION_CPU_TIER"));
    EXPECT_THAT(message, HasSubstr(value));
    EXPECT_THAT(message, HasSubstr("names no tier"));
    for (Tier t : SupportedTiers()) EXPECT_THAT(message, HasSubstr(std::string(TierName(t))));
  }
}

TEST(TiersTest, ATierThatTheMachineLacksIsRefusedAsSuch) {
  for (Tier t : {Tier::kPortable, Tier::kAvx2, Tier::kAvx512, Tier::kAvx512Vnni, Tier::kAvx512Bf16}) {
    const ScopedTierVariable variable(std::string(TierName(t)).c_str());
    const auto supported = SupportedTiers();
    if (std::find(supported.begin(), supported.end(), t) != supported.end()) {
      EXPECT_TRUE(ChooseTier().ok());
    } else {
      EXPECT_EQ(ChooseTier().status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(ChooseTier().status().message()), HasSubstr("lacks the instructions"));
    }
  }
}

}  // namespace
}  // namespace scion::kernels
