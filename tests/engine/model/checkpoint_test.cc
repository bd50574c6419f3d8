// What an undamaged directory gives. Damage is damaged_model_test's subject.
#include "engine/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using test::MakeTinyModel;
using test::TempDir;
using test::TinyFile;
using test::TinyModel;
using test::TinyModelOptions;
using test::TinyTensor;

// Every tensor that was written is found, in its file, with its shape and the bytes that were written.
void ExpectHolds(const Checkpoint& checkpoint, const TinyModel& model) {
  size_t num_tensors = 0;
  ASSERT_EQ(checkpoint.files().size(), model.files.size());
  for (size_t f = 0; f < model.files.size(); ++f) {
    EXPECT_EQ(checkpoint.files()[f].path, model.files[f].path);
    for (const TinyTensor& expected : model.files[f].tensors) {
      ++num_tensors;
      const absl::StatusOr<const TensorInfo*> tensor = checkpoint.Find(expected.name);
      ASSERT_TRUE(tensor.ok()) << tensor.status();
      EXPECT_EQ((*tensor)->file, static_cast<int>(f));
      std::vector<int64_t> shape = expected.shape;
      if (expected.blocks.has_value()) {
        shape[1] = shape[1] / static_cast<int64_t>(DTypeBytes(*expected.blocks)) * DTypeBlockElements(*expected.blocks);
      }
      EXPECT_EQ((*tensor)->shape, shape);
      EXPECT_EQ((*tensor)->dtype, expected.blocks.value_or(expected.dtype));
      ASSERT_EQ((*tensor)->bytes, expected.data.size());
      std::string data((*tensor)->bytes, '\0');
      ASSERT_TRUE(checkpoint.Read(**tensor, 0, std::as_writable_bytes(std::span(data))).ok());
      EXPECT_EQ(data, expected.data) << expected.name;
    }
  }
  EXPECT_EQ(checkpoint.tensors().size(), num_tensors);
}

class CheckpointKinds : public ::testing::TestWithParam<TinyModelOptions> {};

TEST_P(CheckpointKinds, GivesBackWhatWasWritten) {
  TempDir dir;
  const TinyModel model = MakeTinyModel(GetParam());
  WriteTinyModel(model, dir.path());
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExpectHolds(**checkpoint, model);
  EXPECT_EQ((*checkpoint)->lock() != nullptr, GetParam().with_lock);
}

INSTANTIATE_TEST_SUITE_P(
    All, CheckpointKinds,
    ::testing::Values(TinyModelOptions{}, TinyModelOptions{.dtype = DType::kF32},
                      TinyModelOptions{.dtype = DType::kF16}, TinyModelOptions{.with_index = false},
                      TinyModelOptions{.with_lock = true}, TinyModelOptions{.with_index = false, .with_lock = true},
                      TinyModelOptions{.tie_word_embeddings = false},
                      TinyModelOptions{.num_experts_per_tok = 3, .route_weights = true},
                      TinyModelOptions{.num_layers = 4, .sparse_layers = {0, 2}},
                      TinyModelOptions{.num_layers = 2, .sparse_layers = {0, 1}},
                      TinyModelOptions{.sparse_layers = {}, .domains = {}},
                      TinyModelOptions{.domains = {{"a", 1}, {"b-2", 7}, {"default", 2}}, .default_domain = "b-2"},
                      TinyModelOptions{.blocks = DType::kQ8_0},
                      TinyModelOptions{.blocks = DType::kQ4_0, .tie_word_embeddings = false, .with_lock = true},
                      TinyModelOptions{.model_type = "llama", .blocks = DType::kQ5_1},
                      TinyModelOptions{.hidden_size = 256, .moe_intermediate_size = 512, .blocks = DType::kQ4K},
                      TinyModelOptions{.model_type = "llama", .tie_word_embeddings = false},
                      TinyModelOptions{.model_type = "llama", .with_index = false}));

// Which tensors the kinds above quantise, and with which types.
TEST(QuantizedCheckpoint, MatricesWhoseRowsBlocksFillAreBlocks) {
  TempDir dir;
  const TinyModel model = MakeTinyModel({.blocks = DType::kQ4_0, .tie_word_embeddings = false});
  WriteTinyModel(model, dir.path());
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [name, type] : {std::pair<const char*, DType>{"model.embed_tokens.weight", DType::kQ8_0},
                                   {"lm_head.weight", DType::kQ8_0},
                                   {"model.layers.0.self_attn.q_proj.weight", DType::kQ4_0},
                                   {"model.layers.0.mlp.gate_proj.weight", DType::kQ4_0},
                                   {"model.layers.0.mlp.down_proj.weight", DType::kBF16},  // rows of 48
                                   {"model.layers.1.mlp.domains.alpha.experts.0.up_proj.weight", DType::kQ4_0},
                                   {"model.layers.1.mlp.domains.alpha.route", DType::kI32},
                                   {"model.norm.weight", DType::kBF16}}) {
    EXPECT_EQ((*(*checkpoint)->Find(name))->dtype, type) << name;
  }
}

}  // namespace
}  // namespace scion
