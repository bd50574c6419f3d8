#include "engine/model/pack_plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"

namespace scion {
namespace {

using kernels::PackedMatrix;
using kernels::WeightType;

// Rows as on disk are copied in pieces of this size.
constexpr size_t kRowsPieceBytes = 256 << 10;

// The packed type of a matrix. A tensor of the checkpoint has a type that one of the packed types holds.
WeightType PackedType(WeightMode mode, const TensorInfo& tensor) {
  const WeightType exact = *kernels::ExactWeightType(tensor.dtype);
  const bool fills_blocks = tensor.shape[1] % 32 == 0;
  switch (mode) {
    case WeightMode::kAsIs:
      return exact;
    case WeightMode::kBF16:
      return WeightType::kBF16;
    case WeightMode::kF32:
      return WeightType::kF32;
    case WeightMode::kQ8:
      return fills_blocks ? WeightType::kQ8 : exact;
    case WeightMode::kQ4:
      return fills_blocks ? WeightType::kQ4 : exact;
  }
  return exact;
}

}  // namespace

int64_t PackPlan::Item::out_features() const {
  if (second != nullptr) return parts[0]->shape[0];
  int64_t n = 0;
  for (const TensorInfo* part : parts) n += part->shape[0];
  return n;
}

size_t PackPlan::Item::bytes() const {
  if (rows != nullptr) return AlignUp(parts[0]->bytes, 64);
  const size_t one = kernels::PackedBytes(type, static_cast<int>(out_features()), in_features());
  return second != nullptr ? 2 * one : one;
}

size_t PackPlan::Item::piece_bytes() const {
  return rows != nullptr ? kRowsPieceBytes : kernels::PackedPanelBytes(type, in_features());
}

void PackPlan::Push(Item item) {
  item.offset = bytes_;
  bytes_ += item.bytes();
  items_.push_back(std::move(item));
}

absl::Status PackPlan::Add(const std::string& name, std::optional<WeightMode> mode, PackedMatrix* out) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Find(name));
  Push({.parts = {tensor}, .type = PackedType(mode.value_or(mode_), *tensor), .matrix = out});
  return absl::OkStatus();
}

absl::Status PackPlan::AddJoined(const std::vector<std::string>& names, std::vector<PackedMatrix>& out) {
  std::vector<Item> joined;
  bool one_form = true;
  for (const std::string& name : names) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Find(name));
    const WeightType type = PackedType(mode_, *tensor);
    if (joined.empty() || joined.back().type != type || joined.back().parts[0]->dtype != tensor->dtype) {
      joined.push_back({.parts = {}, .type = type});
      one_form = one_form && kernels_.activation_form(type) == kernels_.activation_form(joined[0].type);
    }
    joined.back().parts.push_back(tensor);
  }
  out.resize(joined.size());
  for (size_t i = 0; i < joined.size(); ++i) {
    joined[i].matrix = &out[i];
    // A rare mix, such as fp32 beside blocks: fp32 holds them all.
    if (!one_form) joined[i].type = WeightType::kF32;
    Push(std::move(joined[i]));
  }
  return absl::OkStatus();
}

absl::Status PackPlan::AddPair(const std::string& first, const std::string& second, PackedMatrix* out_first,
                               PackedMatrix* out_second) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* a, checkpoint_.Find(first));
  SCION_ASSIGN_OR_RETURN(const TensorInfo* b, checkpoint_.Find(second));
  WeightType type = PackedType(mode_, *a);
  if (type != PackedType(mode_, *b)) type = WeightType::kF32;
  Push({.parts = {a, b}, .type = type, .matrix = out_first, .second = out_second});
  return absl::OkStatus();
}

absl::Status PackPlan::AddRows(const std::string& name, std::span<const std::byte>* out) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Find(name));
  Push({.parts = {tensor}, .rows = out});
  return absl::OkStatus();
}

std::vector<PackPlan::Piece> PackPlan::Pieces() const {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < items_.size(); ++i) {
    const size_t item_bytes = items_[i].bytes();
    const size_t piece_bytes = items_[i].piece_bytes();
    int index = 0;
    for (size_t begin = 0; begin < item_bytes; begin += piece_bytes) {
      pieces.push_back({.item = static_cast<int>(i),
                        .index = index++,
                        .offset = items_[i].offset + begin,
                        .bytes = std::min(piece_bytes, item_bytes - begin)});
    }
  }
  return pieces;
}

std::vector<int> PackPlan::Files() const {
  std::set<int> files;
  for (const Item& item : items_) {
    for (const TensorInfo* part : item.parts) files.insert(part->file);
  }
  return {files.begin(), files.end()};
}

std::string PackPlan::LayoutHash() const {
  std::set<std::pair<DType, WeightType>> pairs;
  for (const Item& item : items_) {
    if (item.matrix == nullptr) continue;
    for (const TensorInfo* part : item.parts) pairs.emplace(part->dtype, item.type);
  }
  // Panels whose bytes, read as numbers of any type, are finite: a full one, and one of few features.
  constexpr int kInFeatures = 512;
  Sha256 hash;
  for (const auto& [source, type] : pairs) {
    std::vector<std::byte> rows(DTypeRowBytes(source, kInFeatures) * kernels::kPanelWidth);
    uint32_t random = 1;
    for (std::byte& b : rows) {
      random = random * 1664525 + 1013904223;
      b = static_cast<std::byte>(random >> 24 & 0x3f);
    }
    std::vector<std::byte> panel(kernels::PackedPanelBytes(type, kInFeatures) + 64);
    const size_t past = reinterpret_cast<uintptr_t>(panel.data()) % 64;
    const std::span<std::byte> aligned = std::span(panel).subspan(64 - past, panel.size() - 64);
    for (const int features : {kernels::kPanelWidth, 3}) {
      kernels::PackPanel(source, rows.data(), features, kInFeatures, type, aligned.data());
      hash.Update(aligned);
    }
  }
  return hash.FinishHex();
}

std::string PackPlan::Description() const {
  std::string text = absl::StrCat("layout ", LayoutHash(), "\n");
  for (const Item& item : items_) {
    absl::StrAppend(&text, item.rows != nullptr ? "rows" : ToAbsl(kernels::WeightTypeName(item.type)),
                    item.second != nullptr ? " pair " : " ", item.out_features(), "x", item.in_features(), " at ",
                    item.offset, " of");
    for (const TensorInfo* part : item.parts) {
      absl::StrAppend(&text, " ", part->name, " ", part->shape[0], " rows of ", ToAbsl(DTypeName(part->dtype)), " at ",
                      part->offset, " of file ", part->file);
      if (part->interleaved_head_dim > 0) absl::StrAppend(&text, " in pairs of ", part->interleaved_head_dim);
    }
    text += "\n";
  }
  return text;
}

absl::Status PackPlan::MakePanel(std::span<const TensorInfo* const> parts, WeightType type, int panel, std::byte* out,
                                 Staging& staging) const {
  const DType source_type = parts[0]->dtype;
  const int64_t in_features = parts[0]->shape[1];
  const size_t row_bytes = DTypeRowBytes(source_type, static_cast<uint64_t>(in_features));
  int64_t features = 0;
  for (const TensorInfo* part : parts) features += part->shape[0];
  const int64_t first = int64_t{panel} * kernels::kPanelWidth;
  const int64_t count = std::min<int64_t>(kernels::kPanelWidth, features - first);
  staging.resize(static_cast<size_t>(count) * row_bytes);
  int64_t part_begin = 0;
  for (const TensorInfo* part : parts) {
    const int64_t part_end = part_begin + part->shape[0];
    const int64_t begin = std::max(first, part_begin);
    const int64_t end = std::min(first + count, part_end);
    const int64_t step = part->interleaved_head_dim > 0 ? 1 : end - begin;
    for (int64_t row = begin; row < end; row += step) {
      const int64_t from = part->FileRow(row - part_begin);
      SCION_RETURN_IF_ERROR(checkpoint_.Read(*part, static_cast<uint64_t>(from) * row_bytes,
                                             std::span(staging).subspan(static_cast<size_t>(row - first) * row_bytes,
                                                                        static_cast<size_t>(step) * row_bytes)));
    }
    part_begin = part_end;
  }
  kernels::PackPanel(source_type, staging.data(), static_cast<int>(count), static_cast<int>(in_features), type, out);
  return absl::OkStatus();
}

absl::Status PackPlan::Make(const Piece& piece, std::byte* out, Staging& staging) const {
  const Item& item = items_[static_cast<size_t>(piece.item)];
  if (item.second != nullptr) {
    const size_t part = static_cast<size_t>(piece.index % 2);
    return MakePanel(std::span(item.parts).subspan(part, 1), item.type, piece.index / 2, out, staging);
  }
  if (item.rows == nullptr) return MakePanel(item.parts, item.type, piece.index, out, staging);
  const TensorInfo& tensor = *item.parts[0];
  const size_t begin = piece.offset - item.offset;
  const size_t bytes = std::min(piece.bytes, tensor.bytes - begin);
  std::memset(out + bytes, 0, piece.bytes - bytes);
  return checkpoint_.Read(tensor, begin, {out, bytes});
}

absl::Status PackPlan::Make(std::span<const Piece> pieces, std::byte* out, ThreadPool& pool) const {
  if (pieces.empty()) return absl::OkStatus();
  std::vector<Staging> staging(static_cast<size_t>(pool.num_threads()));
  std::atomic<bool> failed{false};
  std::mutex mutex;
  absl::Status first_error;
  pool.ParallelFor(static_cast<int>(pieces.size()), [&](int task, int thread) {
    if (failed.load(std::memory_order_relaxed)) return;
    const Piece& piece = pieces[static_cast<size_t>(task)];
    absl::Status status = Make(piece, out + (piece.offset - pieces[0].offset), staging[static_cast<size_t>(thread)]);
    if (status.ok()) return;
    std::lock_guard lock(mutex);
    if (!failed.exchange(true)) first_error = std::move(status);
  });
  return first_error;
}

absl::StatusOr<AlignedBuffer> PackPlan::MakeInMemory(std::string_view purpose, ThreadPool& pool) const {
  SCION_ASSIGN_OR_RETURN(AlignedBuffer buffer, AlignedBuffer::Create(bytes_, purpose));
  SCION_RETURN_IF_ERROR(Make(Pieces(), buffer.data(), pool));
  return buffer;
}

void PackPlan::Place(const std::byte* block) const {
  for (const Item& item : items_) {
    const std::byte* data = block + item.offset;
    if (item.rows != nullptr) {
      *item.rows = {data, item.parts[0]->bytes};
      continue;
    }
    *item.matrix = {.data = data,
                    .out_features = static_cast<int>(item.out_features()),
                    .in_features = item.in_features(),
                    .type = item.type,
                    .panel_stride = item.second != nullptr ? 2 : 1};
    if (item.second == nullptr) continue;
    *item.second = *item.matrix;
    item.second->data += item.piece_bytes();
  }
}

void PackPlan::ReleaseSource(int item) const {
  for (const TensorInfo* part : items_[static_cast<size_t>(item)].parts) checkpoint_.Release(*part);
}

}  // namespace scion
