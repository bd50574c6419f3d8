#include "engine/base/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace scion {
namespace {

// FIPS 180-4's examples.
TEST(Sha256Test, GivesThePublishedDigests) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesGiveTheDigestOfTheWhole) {
  for (size_t piece : {1, 3, 63, 64, 65, 1000}) {
    Sha256 hash;
    const std::string text(1000, 'q');
    for (size_t i = 0; i < text.size(); i += piece) hash.Update(std::string_view(text).substr(i, piece));
    EXPECT_EQ(hash.FinishHex(), Sha256Hex(text)) << piece;
  }
}

TEST(Sha256Test, KnowsADigestWhenItSeesOne) {
  EXPECT_TRUE(IsSha256Hex(std::string(64, 'a')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a')));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'A')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a') + "g"));
}

}  // namespace
}  // namespace scion
