#include "extract/dense_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "extract/digest_file.h"
#include "extract/progress.h"
#include "extract/safetensors_writer.h"

namespace scion {
namespace {

// A tensor of the fold: its place in the file, and how its values come to be.
struct PlannedTensor {
  NewTensor place;
  std::function<absl::StatusOr<std::vector<float>>()> values;
};

// `m` in the upper left corner of [rows, cols], zeros elsewhere.
std::vector<float> Padded(const FloatMatrix& m, int rows, int cols) {
  std::vector<float> padded(static_cast<size_t>(rows) * static_cast<size_t>(cols));
  for (int i = 0; i < m.rows; ++i) {
    std::ranges::copy(m.row(i), padded.begin() + static_cast<ptrdiff_t>(i) * cols);
  }
  return padded;
}

class DensePlan {
 public:
  DensePlan(const Checkpoint& source, const DenseLayout& layout, const std::map<int, FoldedLayer>& folded)
      : source_(source), spec_(source.spec()), layout_(layout), folded_(folded) {}

  absl::StatusOr<std::vector<PlannedTensor>> Make() {
    SCION_RETURN_IF_ERROR(AddEmbedding());
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
      const auto name = [&](std::string_view rest) { return TrunkTensorName(layer, rest); };
      SCION_RETURN_IF_ERROR(AddNorm(name("input_layernorm.weight"), -1));
      const AttentionSpec& attention = spec_.layers[static_cast<size_t>(layer)].attention;
      const int q = attention.num_heads * attention.head_dim, kv = attention.num_kv_heads * attention.head_dim;
      SCION_RETURN_IF_ERROR(AddMatrix(name("self_attn.q_proj.weight"), q, layout_.hidden_size));
      SCION_RETURN_IF_ERROR(AddMatrix(name("self_attn.k_proj.weight"), kv, layout_.hidden_size));
      SCION_RETURN_IF_ERROR(AddMatrix(name("self_attn.v_proj.weight"), kv, layout_.hidden_size));
      SCION_RETURN_IF_ERROR(AddMatrix(name("self_attn.o_proj.weight"), layout_.hidden_size, q));
      SCION_RETURN_IF_ERROR(AddNorm(name("post_attention_layernorm.weight"), layer));
      SCION_RETURN_IF_ERROR(folded_.contains(layer) ? AddFolded(layer) : AddDense(layer));
    }
    SCION_RETURN_IF_ERROR(AddNorm("model.norm.weight", -1));
    if (!spec_.tie_word_embeddings) {
      SCION_RETURN_IF_ERROR(AddMatrix("lm_head.weight", spec_.vocab_size, layout_.hidden_size));
    }
    // Wide elements first, so that every element lies where its size divides the offset.
    std::ranges::stable_sort(plan_, std::ranges::greater(),
                             [](const PlannedTensor& t) { return t.place.element_width(); });
    return std::move(plan_);
  }

 private:
  absl::Status AddMatrix(const std::string& name, int rows, int cols) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, source_.Find(name));
    plan_.push_back(
        {{name, tensor->dtype, {rows, cols}}, [this, name, rows, cols]() -> absl::StatusOr<std::vector<float>> {
           SCION_ASSIGN_OR_RETURN(const FloatMatrix m, ReadMatrix(source_, name));
           return Padded(m, rows, cols);
         }});
    return absl::OkStatus();
  }

  // The embedding's typical size decides that of the channels: a 64th, which adds little to any mean square.
  absl::StatusOr<float> ChannelUnit(const FloatMatrix& embedding) const {
    double sum = 0;
    for (const float v : embedding.data) sum += static_cast<double>(v) * static_cast<double>(v);
    const double size = std::sqrt(sum / static_cast<double>(embedding.data.size()));
    if (!(size > 0 && std::isfinite(size))) return absl::DataLossError("model.embed_tokens.weight is all zeros");
    return static_cast<float>(std::exp2(std::floor(std::log2(size)) - 6));
  }

  absl::Status AddEmbedding() {
    const std::string name = "model.embed_tokens.weight";
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, source_.Find(name));
    if (layout_.is_wider(spec_)) {
      SCION_ASSIGN_OR_RETURN(const FloatMatrix embedding, ReadMatrix(source_, name));
      SCION_ASSIGN_OR_RETURN(channel_unit_, ChannelUnit(embedding));
    }
    plan_.push_back({{name, tensor->dtype, {spec_.vocab_size, layout_.hidden_size}},
                     [this, name]() -> absl::StatusOr<std::vector<float>> {
                       SCION_ASSIGN_OR_RETURN(const FloatMatrix m, ReadMatrix(source_, name));
                       std::vector<float> values = Padded(m, spec_.vocab_size, layout_.hidden_size);
                       for (const auto& [layer, folded] : folded_) SetChannels(layer, folded, values);
                       return values;
                     }});
    return absl::OkStatus();
  }

  void SetChannels(int layer, const FoldedLayer& folded, std::vector<float>& embedding) const {
    if (!layout_.has_channels(layer)) return;
    const size_t hidden = static_cast<size_t>(layout_.hidden_size);
    const size_t first = static_cast<size_t>(layout_.first_channel[static_cast<size_t>(layer)]);
    for (size_t id = 0; id < static_cast<size_t>(spec_.vocab_size); ++id) {
      float* channels = &embedding[id * hidden + first];
      std::fill_n(channels, folded.num_experts, channel_unit_);
      for (const auto& slot : folded.route.experts) channels[slot[id]] = 0;
    }
  }

  // layer: whose channels pass; -1 for none.
  absl::Status AddNorm(const std::string& name, int layer) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, source_.Find(name));
    const DType type = layout_.is_wider(spec_) ? DType::kF32 : tensor->dtype;
    plan_.push_back({{name, type, {layout_.hidden_size}}, [this, name, layer]() -> absl::StatusOr<std::vector<float>> {
                       SCION_ASSIGN_OR_RETURN(std::vector<float> values, ReadVector(source_, name));
                       const double scale = std::sqrt(static_cast<double>(spec_.hidden_size) / layout_.hidden_size);
                       if (layout_.is_wider(spec_)) {
                         for (float& v : values) v = static_cast<float>(scale * static_cast<double>(v));
                       }
                       values.resize(static_cast<size_t>(layout_.hidden_size));
                       if (layer < 0 || !layout_.has_channels(layer)) return values;
                       const FoldedLayer& folded = folded_.at(layer);
                       const double gain = scale * static_cast<double>(folded.channel_size / channel_unit_);
                       std::fill_n(values.begin() + layout_.first_channel[static_cast<size_t>(layer)],
                                   folded.num_experts, static_cast<float>(gain));
                       return values;
                     }});
    return absl::OkStatus();
  }

  absl::Status AddDense(int layer) {
    const auto name = [&](std::string_view rest) { return TrunkTensorName(layer, rest); };
    SCION_RETURN_IF_ERROR(AddMatrix(name("mlp.gate_proj.weight"), layout_.intermediate_size, layout_.hidden_size));
    SCION_RETURN_IF_ERROR(AddMatrix(name("mlp.up_proj.weight"), layout_.intermediate_size, layout_.hidden_size));
    return AddMatrix(name("mlp.down_proj.weight"), layout_.hidden_size, layout_.intermediate_size);
  }

  absl::Status AddFolded(int layer) {
    const auto name = [&](std::string_view rest) { return TrunkTensorName(layer, rest); };
    const FfnMatrices& ffn = folded_.at(layer).ffn;
    SCION_ASSIGN_OR_RETURN(const TensorInfo* expert,
                           source_.Find(ExpertTensorName(layer, spec_.domains[0].name, 0, "gate")));
    const int rows = layout_.intermediate_size, hidden = layout_.hidden_size;
    for (const auto& [rest, matrix] : {std::pair{"mlp.gate_proj.weight", &ffn.gate}, {"mlp.up_proj.weight", &ffn.up}}) {
      plan_.push_back({{name(rest), expert->dtype, {rows, hidden}}, [this, layer, rows, hidden, matrix = matrix]() {
                         return Widened(layer, *matrix, rows, hidden);
                       }});
    }
    plan_.push_back({{name("mlp.down_proj.weight"), expert->dtype, {hidden, rows}},
                     [&ffn, rows, hidden]() { return Padded(ffn.down, hidden, rows); }});
    return absl::OkStatus();
  }

  // The columns behind the source's hidden units are the layer's channels.
  std::vector<float> Widened(int layer, const FloatMatrix& m, int rows, int cols) const {
    const size_t own = static_cast<size_t>(spec_.hidden_size), width = static_cast<size_t>(cols);
    std::vector<float> values(static_cast<size_t>(rows) * width);
    for (int i = 0; i < m.rows; ++i) {
      float* to = &values[static_cast<size_t>(i) * width];
      std::ranges::copy(m.row(i).first(own), to);
      if (!layout_.has_channels(layer)) continue;
      std::ranges::copy(m.row(i).subspan(own), to + layout_.first_channel[static_cast<size_t>(layer)]);
    }
    return values;
  }

  const Checkpoint& source_;
  const ModelSpec& spec_;
  const DenseLayout& layout_;
  const std::map<int, FoldedLayer>& folded_;
  float channel_unit_ = 1.0f;
  std::vector<PlannedTensor> plan_;
};

uint16_t ToHalf(DType type, float value) { return type == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value); }

std::vector<std::byte> ToBytes(DType type, std::span<const float> values) {
  std::vector<std::byte> bytes(values.size() * DTypeBytes(type));
  if (type == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = ToHalf(type, values[i]);
      std::memcpy(&bytes[2 * i], &half, sizeof(half));
    }
  }
  return bytes;
}

}  // namespace

void RoundTo(DType type, FloatMatrix& values) {
  for (float& v : values.data) {
    if (type == DType::kBF16) v = Bf16ToF32(F32ToBf16(v));
    if (type == DType::kF16) v = F16ToF32(F32ToF16(v));
  }
}

absl::StatusOr<DenseFile> WriteDense(const Checkpoint& source, const DenseLayout& layout,
                                     const std::map<int, FoldedLayer>& folded, NewFile out, std::FILE* log) {
  DensePlan maker(source, layout, folded);
  SCION_ASSIGN_OR_RETURN(const std::vector<PlannedTensor> plan, maker.Make());
  DenseFile written;
  std::vector<NewTensor> tensors;
  for (const PlannedTensor& tensor : plan) {
    tensors.push_back(tensor.place);
    written.tensor_bytes += tensor.place.bytes();
  }
  Progress progress(log, "writing", written.tensor_bytes, Progress::Unit::kBytes);
  SCION_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(std::move(out), std::move(tensors)));
  for (const PlannedTensor& tensor : plan) {
    if (CancelRequested()) return absl::CancelledError("interrupted while the fold was written");
    absl::StatusOr<std::vector<float>> values = tensor.values();
    if (!values.ok()) return Annotate(values.status(), source.directory().string());
    if (!std::ranges::all_of(*values, [](float v) { return std::isfinite(v); })) {
      return absl::DataLossError(absl::StrCat(tensor.place.name, " would have a weight that is not finite"));
    }
    const std::vector<std::byte> bytes = ToBytes(tensor.place.dtype, *values);
    SCION_RETURN_IF_ERROR(writer.Append(bytes));
    progress.Advance(bytes.size());
  }
  SCION_ASSIGN_OR_RETURN(written.digest, writer.Finish());
  return written;
}

}  // namespace scion
