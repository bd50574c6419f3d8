// dump_logits MODEL SEQUENCES OUT [--experts FILE] [--domain NAME] [--weights MODE] [--kv-type TYPE] [--threads N]:
// Scion's logits of given token ids, for quality.py, moe_quality.py and client/python/tests.
//
// SEQUENCES is text, one sequence a line: "FIRST id id ...". OUT gets, for every sequence, the logits of positions
// FIRST to the last, as fp32 [positions, vocab_size] one after the other. Positions are computed as the server computes
// them; as bits do not depend on chunks, those of a prompt are also those of decoding it token by token. FILE gets the
// experts of the same positions, as int32 [positions, sparse layers, experts a token], ascending within a layer.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"

namespace scion {
namespace {

struct Sequence {
  int first = 0;
  std::vector<int32_t> token_ids;
};

std::vector<Sequence> ReadSequences(const std::string& path) {
  std::ifstream file(path);
  std::vector<Sequence> sequences;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Sequence s;
    words >> s.first;
    for (int32_t id; words >> id;) s.token_ids.push_back(id);
    sequences.push_back(s);
  }
  return sequences;
}

// What one token more adds to the experts' counters are that token's experts.
class ChosenExperts {
 public:
  ChosenExperts(const Model& model, int domain)
      : model_(model), domain_(domain), layers_(model.spec().SparseLayers()), seen_(layers_.size()) {
    for (auto& seen : seen_)
      seen.resize(static_cast<size_t>(model.spec().domains[static_cast<size_t>(domain)].num_experts));
  }

  std::vector<int32_t> OfTheLastToken() {
    std::vector<int32_t> chosen;
    for (size_t i = 0; i < layers_.size(); ++i) {
      for (size_t e = 0; e < seen_[i].size(); ++e) {
        const uint64_t now = model_.ExpertTokens(layers_[i], domain_, static_cast<int>(e));
        if (now != seen_[i][e]) chosen.push_back(static_cast<int32_t>(e));
        seen_[i][e] = now;
      }
    }
    return chosen;
  }

 private:
  const Model& model_;
  int domain_;
  std::vector<int> layers_;
  std::vector<std::vector<uint64_t>> seen_;
};

template <typename T>
void Write(std::ofstream& out, std::span<const T> values) {
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
}

int Fail(const absl::Status& status) { return std::fprintf(stderr, "%s\n", status.ToString().c_str()), 1; }

int Main(int argc, char** argv) {
  CLI::App app("dump_logits: logits of given token ids", "dump_logits");
  std::map<std::string, WeightMode> modes;
  for (WeightMode mode : kAllWeightModes) modes[std::string(WeightModeName(mode))] = mode;
  std::map<std::string, kernels::KvType> kv_types;
  for (kernels::KvType type : kernels::kAllKvTypes) kv_types[std::string(kernels::KvTypeName(type))] = type;
  std::string model_path, sequences_path, out_path, experts_path, domain, weights = "as-is", kv_type;
  int threads = 2;
  app.add_option("model", model_path)->required();
  app.add_option("sequences", sequences_path)->required();
  app.add_option("out", out_path)->required();
  app.add_option("--experts", experts_path);
  app.add_option("--domain", domain, "default: the model's");
  app.add_option("--weights", weights)->check(CLI::IsMember(modes))->capture_default_str();
  app.add_option("--kv-type", kv_type)->check(CLI::IsMember(kv_types));
  app.add_option("--threads", threads)->check(CLI::Range(1, 1024))->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  ThreadPool pool(threads);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model_path);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Load(**checkpoint,
                  {.tier = *tier,
                   .weights = modes.at(weights),
                   .kv_type = kv_type.empty() ? DefaultKvType(**checkpoint, modes.at(weights)) : kv_types.at(kv_type),
                   .max_step_rows = experts_path.empty() ? ModelOptions{}.max_step_rows : 1},
                  pool);
  if (!model.ok()) return Fail(model.status());
  std::optional<int> domain_index = (*model)->spec().default_domain;
  if (!domain.empty()) domain_index = (*model)->spec().FindDomain(domain);
  if (!domain_index.has_value()) return Fail(absl::NotFoundError("no domain " + domain));
  const std::vector<Sequence> sequences = ReadSequences(sequences_path);
  size_t longest = 1;
  for (const Sequence& s : sequences) longest = std::max(longest, s.token_ids.size());
  absl::StatusOr<KvCache> cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens,
                                                  static_cast<int>(longest) / kernels::kKvBlockTokens + 1);
  if (!cache.ok()) return Fail(cache.status());

  std::ofstream out(out_path, std::ios::binary), experts;
  if (!experts_path.empty()) experts.open(experts_path, std::ios::binary);
  ChosenExperts chosen(**model, *domain_index);
  for (const Sequence& s : sequences) {
    const absl::Status status =
        RunPrompt(**model, *cache, *domain_index, s.token_ids, [&](int position, std::span<const float> logits) {
          const std::vector<int32_t> its_experts = chosen.OfTheLastToken();
          if (position < s.first) return;
          Write(out, logits);
          if (experts.is_open()) Write(experts, std::span(its_experts));
        });
    if (!status.ok()) return Fail(status);
  }
  if (!out.flush()) return std::fprintf(stderr, "cannot write %s\n", out_path.c_str()), 1;
  if (experts.is_open() && !experts.flush()) return std::fprintf(stderr, "cannot write %s\n", experts_path.c_str()), 1;
  return 0;
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) { return scion::Main(argc, argv); }
