#include "extract/upcycle.h"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "engine/text/tokenizer.h"
#include "extract/balanced_route.h"
#include "extract/new_model.h"
#include "extract/safetensors_writer.h"
#include "extract/token_histogram.h"
#include "extract/tokenizer_json.h"
#include "extract/upcycle_config.h"

namespace scion {
namespace {

constexpr uint64_t kBatchBytes = uint64_t{1} << 20;  // of a tensor, read at a time; at least a row

// A tensor of the new model and where its data come from.
struct PlannedTensor {
  NewTensor tensor;
  const TensorInfo* source = nullptr;  // null: a route table
  int layer = 0;                       // of the route table
};

struct PlannedFile {
  std::string path;
  std::optional<int> domain;  // number of the domain; nothing for the trunk
  std::vector<PlannedTensor> tensors;
};

absl::Status Invalid(std::string message) { return absl::InvalidArgumentError(message); }

absl::Status CheckOptions(const UpcycleOptions& options) {
  if (options.domains.empty()) return Invalid("no domain is named");
  if (options.domains.size() > static_cast<size_t>(kMaxDomains)) {
    return Invalid(absl::StrCat(options.domains.size(), " domains, more than the limit of ", kMaxDomains));
  }
  for (const std::string& name : options.domains) {
    if (!IsValidDomainName(name)) {
      return Invalid(absl::StrCat(Quoted(name), " is not a domain's name: [a-z][a-z0-9_-]{0,62}, not auto or all"));
    }
  }
  if (std::set<std::string>(options.domains.begin(), options.domains.end()).size() != options.domains.size()) {
    return Invalid("a domain is named twice");
  }
  if (options.num_experts < 1 || options.num_experts > kMaxExpertsPerDomain) {
    return Invalid(absl::StrCat(options.num_experts, " experts, outside [1, ", kMaxExpertsPerDomain, "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckSource(const ModelSpec& spec, const UpcycleOptions& options) {
  const std::string dense = options.dense.string();
  if (!spec.SparseLayers().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(dense, " has experts already; a dense model is upcycled"));
  }
  if (spec.model_type != "llama") {
    return absl::FailedPreconditionError(
        absl::StrCat(dense, " is of type ", Quoted(spec.model_type), "; a model of type 'llama' is upcycled"));
  }
  const int layers = static_cast<int>(spec.layers.size());
  if (options.sparse_layers < 1 || options.sparse_layers > layers) {
    return Invalid(absl::StrCat(options.sparse_layers, " sparse layers, but ", dense, " has ", layers, " layers"));
  }
  if (options.num_experts > spec.vocab_size) {
    return Invalid(absl::StrCat(options.num_experts, " experts for a vocabulary of ", spec.vocab_size, " tokens"));
  }
  return absl::OkStatus();
}

// The trunk's file, then the domains'.
std::vector<PlannedFile> PlanFiles(const Checkpoint& dense, const std::vector<int>& sparse_layers,
                                   const UpcycleOptions& options) {
  constexpr std::string_view kProjections[] = {"gate", "up", "down"};
  std::map<std::string, std::pair<int, std::string_view>> ffn;  // name in the parent -> layer, projection
  for (const int layer : sparse_layers) {
    for (const std::string_view projection : kProjections) {
      ffn[TrunkTensorName(layer, absl::StrCat("mlp.", ToAbsl(projection), "_proj.weight"))] = {layer, projection};
    }
  }
  std::vector<PlannedFile> files;
  files.push_back({.path = "trunk.safetensors", .domain = std::nullopt, .tensors = {}});
  for (const TensorInfo& tensor : dense.tensors()) {
    if (ffn.contains(tensor.name)) continue;
    files[0].tensors.push_back({.tensor = {tensor.name, tensor.dtype, tensor.shape}, .source = &tensor});
  }
  for (const std::string& domain : options.domains) {
    PlannedFile file{.path = absl::StrCat("domains/", domain, ".safetensors"),
                     .domain = static_cast<int>(files.size()) - 1,
                     .tensors = {}};
    for (const int layer : sparse_layers) {
      for (int e = 0; e < options.num_experts; ++e) {
        for (const auto& [name, place] : ffn) {
          if (place.first != layer) continue;
          const TensorInfo* source = *dense.Find(name);
          file.tensors.push_back(
              {.tensor = {ExpertTensorName(layer, domain, e, place.second), source->dtype, source->shape},
               .source = source});
        }
      }
      file.tensors.push_back(
          {.tensor = {RouteTensorName(layer, domain), DType::kI32, {1, dense.spec().vocab_size}}, .layer = layer});
    }
    files.push_back(std::move(file));
  }
  for (PlannedFile& file : files) {
    std::ranges::stable_sort(file.tensors, std::ranges::greater(),
                             [](const PlannedTensor& planned) { return planned.tensor.element_width(); });
  }
  return files;
}

std::vector<NewTensor> TensorsOf(std::span<const PlannedFile> files) {
  std::vector<NewTensor> tensors;
  for (const PlannedFile& file : files) {
    for (const PlannedTensor& planned : file.tensors) tensors.push_back(planned.tensor);
  }
  return tensors;
}

absl::Status CopyTensor(const Checkpoint& dense, const TensorInfo& source, SafetensorsWriter& writer,
                        std::vector<std::byte>& batch, Progress& progress) {
  const uint64_t row = DTypeRowBytes(source.dtype, static_cast<uint64_t>(source.shape.back()));
  const uint64_t batch_bytes = std::max<uint64_t>(1, kBatchBytes / row) * row;
  for (uint64_t at = 0; at < source.bytes; at += batch.size()) {
    if (CancelRequested()) {
      return absl::CancelledError(absl::StrCat("interrupted while reading ", dense.directory().string()));
    }
    batch.resize(std::min(batch_bytes, source.bytes - at));
    SCION_RETURN_IF_ERROR(Annotate(dense.ReadInOrder(source, at, batch), dense.directory().string()));
    SCION_RETURN_IF_ERROR(writer.Append(batch));
    progress.Advance(batch.size());
  }
  return absl::OkStatus();
}

// The histogram of the text that was given, or nothing.
absl::StatusOr<std::vector<uint64_t>> ReadHistogram(const Checkpoint& dense, const UpcycleOptions& options) {
  if (!options.histogram.has_value()) return std::vector<uint64_t>();
  if (dense.is_gguf() && dense.vocabulary() == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.dense.string(), " has no tokenizer, which a histogram of a text needs"));
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      dense.is_gguf() ? Tokenizer::FromGguf(*dense.vocabulary()) : Tokenizer::Load(dense.directory());
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), options.dense.string());
  Progress progress(options.log, "counting tokens", 0, Progress::Unit::kBytes);
  return CountTokens(*options.histogram, **tokenizer, dense.spec().vocab_size, progress);
}

absl::Status WriteTokenizer(const Checkpoint& dense, NewModel& model) {
  if (dense.vocabulary() == nullptr) return absl::OkStatus();
  const absl::StatusOr<std::string> tokenizer = TokenizerJson(*dense.vocabulary());
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), dense.directory().string());
  SCION_RETURN_IF_ERROR(model.WriteCompanion("tokenizer.json", *tokenizer));
  return model.WriteCompanion("tokenizer_config.json", TokenizerConfigJson(*dense.vocabulary()));
}

}  // namespace

absl::StatusOr<UpcycleResult> Upcycle(const UpcycleOptions& options) {
  SCION_RETURN_IF_ERROR(CheckOptions(options));
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.dense);
  if (!opened.ok()) return Annotate(opened.status(), options.dense.string());
  const Checkpoint& dense = **opened;
  SCION_RETURN_IF_ERROR(CheckSource(dense.spec(), options));

  UpcycleResult result;
  result.smallest_share = 1;
  const int layers = static_cast<int>(dense.spec().layers.size());
  for (int l = layers - options.sparse_layers; l < layers; ++l) result.sparse_layers.push_back(l);
  for (const CheckpointFile& file : dense.files()) result.dense_bytes += file.file.size();
  const uint64_t experts =
      uint64_t{options.domains.size()} * result.sparse_layers.size() * static_cast<uint64_t>(options.num_experts);
  if (3 * experts + dense.tensors().size() > static_cast<uint64_t>(kMaxTensors)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(experts, " experts in all make more than ", kMaxTensors, " tensors, the limit of a model"));
  }
  SCION_ASSIGN_OR_RETURN(const std::vector<uint64_t> histogram, ReadHistogram(dense, options));
  const std::vector<PlannedFile> files = PlanFiles(dense, result.sparse_layers, options);
  UpcycledShape shape{
      .sparse_layers = result.sparse_layers,
      .domains = {},
      .default_domain = options.domains[0],
      .routes = {{"seed", options.seed}, {"balanced_by", histogram.empty() ? "token_types" : "token_mass"}}};
  for (const std::string& name : options.domains) shape.domains.push_back({name, options.num_experts});
  SCION_ASSIGN_OR_RETURN(const std::string config, UpcycledConfig(dense, shape, TensorsOf(files)));

  SCION_ASSIGN_OR_RETURN(NewModel model, NewModel::Create(dense, options.out));
  SCION_RETURN_IF_ERROR(model.CheckSource(options.log));
  uint64_t total = 0;
  for (const PlannedFile& file : files) {
    for (const PlannedTensor& planned : file.tensors) total += planned.tensor.bytes();
  }
  {
    Progress progress(options.log, "writing", total, Progress::Unit::kBytes);
    std::vector<std::byte> batch;
    for (const PlannedFile& file : files) {
      SCION_ASSIGN_OR_RETURN(NewFile out, model.CreateDataFile(file.path));
      SCION_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                             SafetensorsWriter::Create(std::move(out), TensorsOf({&file, 1})));
      uint64_t tensor_bytes = 0;
      for (const PlannedTensor& planned : file.tensors) {
        tensor_bytes += planned.tensor.bytes();
        if (planned.source != nullptr) {
          SCION_RETURN_IF_ERROR(CopyTensor(dense, *planned.source, writer, batch, progress));
          continue;
        }
        const uint64_t stream = static_cast<uint64_t>(*file.domain) * kMaxLayers + static_cast<uint64_t>(planned.layer);
        const BalancedRoute route =
            MakeBalancedRoute(histogram, dense.spec().vocab_size, options.num_experts, options.seed, stream);
        result.smallest_share = std::min(result.smallest_share, route.smallest_share);
        result.largest_share = std::max(result.largest_share, route.largest_share);
        SCION_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(route.expert_of_token))));
        progress.Advance(planned.tensor.bytes());
      }
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, writer.Finish());
      result.bytes += digest.bytes;
      if (file.domain.has_value()) {
        model.AddDomainFile(options.domains[static_cast<size_t>(*file.domain)], file.path, 1, digest, tensor_bytes);
      } else {
        model.AddTrunkFile(file.path, digest, tensor_bytes);
      }
    }
    SCION_RETURN_IF_ERROR(WriteTokenizer(dense, model));
    SCION_RETURN_IF_ERROR(model.CopyCompanions(progress));
  }
  SCION_RETURN_IF_ERROR(model.Commit(
      config, {.verb = "upcycle", .version = options.version, .now = options.now, .domains = options.domains}));
  return result;
}

}  // namespace scion
