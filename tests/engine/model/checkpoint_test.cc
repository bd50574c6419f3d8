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
      EXPECT_EQ((*tensor)->shape, expected.shape);
      EXPECT_EQ((*tensor)->dtype, expected.dtype);
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
                      TinyModelOptions{.model_type = "llama", .tie_word_embeddings = false},
                      TinyModelOptions{.model_type = "llama", .with_index = false}));

}  // namespace
}  // namespace scion
