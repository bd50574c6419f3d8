// What one block of packed weights holds: matrices in panels, as the kernels read them, and rows as on disk. Every item
// has its place before anything is read, and is made piece by piece, so that the block may be memory or a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/aligned_buffer.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/model/checkpoint.h"
#include "engine/model/weight_mode.h"

namespace scion {

class PackPlan {
 public:
  // A part of the block that is made at once: a panel of a matrix, or some rows' bytes. Pieces lie side by side.
  struct Piece {
    int item;
    int index;      // within the item
    size_t offset;  // from the start of the block, a multiple of 64
    size_t bytes;   // likewise
  };
  // Memory of one thread while it makes pieces.
  using Staging = std::vector<std::byte>;

  // Both must outlive the plan. `kernels` says which matrices can share prepared activations.
  PackPlan(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels)
      : checkpoint_(checkpoint), mode_(mode), kernels_(kernels) {}

  // One matrix; `mode` other than the plan's for what is never or less coarsely rounded.
  absl::Status Add(const std::string& name, std::optional<WeightMode> mode, kernels::PackedMatrix* out);
  absl::Status Add(const std::string& name, kernels::PackedMatrix* out) { return Add(name, std::nullopt, out); }
  // Matrices that multiply the same input, one below the other: as few as their types allow, of one activation form.
  absl::Status AddJoined(const std::vector<std::string>& names, std::vector<kernels::PackedMatrix>& out);
  // Two matrices of one shape that are multiplied with the same input, panel by panel: their panels alternate. Of one
  // packed type.
  absl::Status AddPair(const std::string& first, const std::string& second, kernels::PackedMatrix* out_first,
                       kernels::PackedMatrix* out_second);
  // A tensor's bytes as on disk.
  absl::Status AddRows(const std::string& name, std::span<const std::byte>* out);

  const Checkpoint& checkpoint() const { return checkpoint_; }
  WeightMode mode() const { return mode_; }
  size_t bytes() const { return bytes_; }  // of the block
  std::vector<Piece> Pieces() const;
  // Indices into checkpoint().files() of those that the items come from, ascending.
  std::vector<int> Files() const;
  // All that decides what the block's bytes are, but for the tensors' data: a line for every item with its type, shape
  // and place, and those of its tensors in their files, and one with a hash of how panels of these types are packed.
  std::string Description() const;

  // Makes one piece at `out`, piece.bytes long. DataLoss as Checkpoint::Read. Thread-safe.
  absl::Status Make(const Piece& piece, std::byte* out, Staging& staging) const;
  // Makes consecutive pieces, one after another from `out` on, on all threads.
  absl::Status Make(std::span<const Piece> pieces, std::byte* out, ThreadPool& pool) const;
  // Makes the whole block in memory; ResourceExhausted, naming `purpose`, if that can't be had.
  absl::StatusOr<AlignedBuffer> MakeInMemory(std::string_view purpose, ThreadPool& pool) const;
  // Tells every `out` that its item lies in the block at `block`.
  void Place(const std::byte* block) const;
  // Lets go of the pages of the source that the item has been made of.
  void ReleaseSource(int item) const;

 private:
  struct Item {
    // [features, in_features] each: one below the other, all of one type; or two of one shape, whose panels
    // alternate.
    std::vector<const TensorInfo*> parts;
    kernels::WeightType type = kernels::WeightType::kF32;
    kernels::PackedMatrix* matrix = nullptr;     // one of these two
    std::span<const std::byte>* rows = nullptr;  // as on disk: one part
    kernels::PackedMatrix* second = nullptr;     // of a pair
    size_t offset = 0;

    int64_t out_features() const;
    int in_features() const { return static_cast<int>(parts[0]->shape[1]); }
    size_t bytes() const;
    size_t piece_bytes() const;
  };

  void Push(Item item);
  // Of the features of `parts`, one after another.
  absl::Status MakePanel(std::span<const TensorInfo* const> parts, kernels::WeightType type, int panel, std::byte* out,
                         Staging& staging) const;
  std::string LayoutHash() const;

  const Checkpoint& checkpoint_;
  const WeightMode mode_;
  const kernels::KernelTable& kernels_;
  std::vector<Item> items_;
  size_t bytes_ = 0;
};

}  // namespace scion
