// Speed of single steps against the machine's own limits, measured in turn in the same run.
//
//   step_bench MODEL [--weights MODE] [--threads N] [--rounds N] [--prefill N] [--depth N] [--decode N]
//              [--min-decode X] [--min-prefill X] [--pack-dir DIR]
//
// decode: one sequence, one token a step; limit: read bandwidth over the bytes of active weights.
// prefill: one prompt; limit: peak of the tier's multiply-add (of int8 dot products on blocked weights) over the FLOPs.
// Prints each round and the medians; with --min-decode or --min-prefill, exits with 1 when a median ratio is below.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/base/aligned_buffer.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "tests/bench/machine_limits.h"

namespace scion {
namespace {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// Parameters that one token of one domain uses, without the embedding's look-up.
struct ActiveSize {
  double per_layers = 0;  // all layers
  double head = 0;
};

ActiveSize Active(const ModelSpec& s) {
  ActiveSize a;
  const double hidden = s.hidden_size;
  for (const LayerSpec& l : s.layers) {
    const double q = l.attention.num_heads * l.attention.head_dim;
    const double kv = l.attention.num_kv_heads * l.attention.head_dim;
    a.per_layers += hidden * (2 * q + 2 * kv) + 3 * hidden * l.ffn.intermediate_size * l.ffn.num_experts_per_tok;
  }
  a.head = hidden * s.vocab_size;
  return a;
}

struct Bench {
  Model& model;
  KvCache& cache;
  std::vector<int32_t> blocks;
  std::vector<float> logits;
  std::mt19937 random{5};

  int32_t RandomToken() { return static_cast<int32_t>(random() % static_cast<unsigned>(model.spec().vocab_size)); }

  void Step(int position, const std::vector<int32_t>& ids) {
    const StepChunk chunk{
        .domain = 0, .row_begin = 0, .num_rows = static_cast<int>(ids.size()), .position = position, .blocks = blocks};
    const int32_t last = static_cast<int32_t>(ids.size()) - 1;
    model.Forward({.token_ids = ids, .chunks = {&chunk, 1}, .logit_rows = {&last, 1}}, cache);
    model.Logits(0, 1, logits.data());
  }
  double DecodeSecondsPerToken(int depth, int tokens) {
    for (int i = 0; i < 4; ++i) Step(depth + i, {RandomToken()});
    const double begin = Seconds();
    for (int i = 0; i < tokens; ++i) Step(depth + 4 + i, {RandomToken()});
    return (Seconds() - begin) / tokens;
  }
  double PrefillSeconds(int tokens) {
    std::vector<int32_t> ids;
    for (int i = 0; i < tokens; ++i) ids.push_back(RandomToken());
    const double begin = Seconds();
    Step(0, ids);
    return Seconds() - begin;
  }
};

int Main(int argc, char** argv) {
  int threads = 2;
  int rounds = 5;
  int prefill = 512;
  int depth = 64;
  int decode_tokens = 32;
  std::string pack_dir;
  WeightMode mode = WeightMode::kAsIs;
  double min_decode = 0;
  double min_prefill = 0;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) != 0) {
      path = arg;
      continue;
    }
    if (i + 1 == argc) return std::fprintf(stderr, "%s needs a value\n", arg.c_str()), 2;
    if (arg == "--weights") {
      const std::optional<WeightMode> parsed = ParseWeightMode(argv[++i]);
      if (!parsed.has_value()) return std::fprintf(stderr, "no weights '%s'\n", argv[i]), 2;
      mode = *parsed;
      continue;
    }
    if (arg == "--pack-dir") {
      pack_dir = argv[++i];
      continue;
    }
    const double value = std::atof(argv[++i]);
    if (arg == "--threads")
      threads = static_cast<int>(value);
    else if (arg == "--rounds")
      rounds = static_cast<int>(value);
    else if (arg == "--prefill")
      prefill = static_cast<int>(value);
    else if (arg == "--depth")
      depth = static_cast<int>(value);
    else if (arg == "--decode")
      decode_tokens = static_cast<int>(value);
    else if (arg == "--min-decode")
      min_decode = value;
    else if (arg == "--min-prefill")
      min_prefill = value;
    else
      return std::fprintf(stderr, "unknown option %s\n", arg.c_str()), 2;
  }
  if (path.empty()) return std::fprintf(stderr, "usage: step_bench MODEL [options]\n"), 2;

  absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return std::fprintf(stderr, "%s\n", tier.status().ToString().c_str()), 1;
  ThreadPool pool(threads);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return std::fprintf(stderr, "%s\n", checkpoint.status().ToString().c_str()), 1;
  const double load_begin = Seconds();
  ModelOptions options{.tier = *tier, .weights = mode, .max_step_rows = std::max(prefill, 8)};
  if (!pack_dir.empty()) options.pack_cache.directory = PackDirectoryIn(pack_dir, path);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**checkpoint, options, pool);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.status().ToString().c_str()), 1;
  const double load_seconds = Seconds() - load_begin;
  const int context = std::max(prefill, depth + decode_tokens + 4);
  absl::StatusOr<KvCache> cache =
      KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, context / kernels::kKvBlockTokens + 1);
  if (!cache.ok()) return std::fprintf(stderr, "%s\n", cache.status().ToString().c_str()), 1;

  Bench bench{.model = **model, .cache = *cache, .blocks = {}, .logits = {}};
  while (std::optional<int32_t> block = cache->Allocate()) bench.blocks.push_back(*block);
  const ModelSpec& spec = (*model)->spec();
  bench.logits.resize(static_cast<size_t>(spec.vocab_size) * 32);
  const ActiveSize active = Active(spec);
  double decode_bytes = static_cast<double>((*model)->active_weight_bytes(0));
  const bool blocked = decode_bytes < 1.6 * (active.per_layers + active.head);  // mostly 8-bit and 4-bit codes
  for (const KvPlaneSpec& plane : (*model)->KvPlanes())
    decode_bytes += static_cast<double>(plane.bytes_per_token) * depth;
  double prefill_flops = 2 * (active.per_layers * prefill + active.head);
  for (const LayerSpec& l : spec.layers) {
    prefill_flops += 2.0 * prefill * prefill * l.attention.num_heads * l.attention.head_dim;
  }
  std::printf(
      "model %s  tier %s  threads %d  weights %.0f MB (loaded in %.1f s)  active %.0f MB/token  prefill %.1f GFLOP\n",
      path.c_str(), std::string(kernels::TierName(*tier)).c_str(), threads,
      static_cast<double>((*model)->weight_bytes()) / 1e6, load_seconds, decode_bytes / 1e6, prefill_flops / 1e9);

  std::vector<double> decode_ratio, prefill_ratio, decode_rate, prefill_rate;
  bench.PrefillSeconds(prefill);
  for (int round = 0; round < rounds; ++round) {
    const double bandwidth = bench::ReadBandwidth(pool);
    const double decode = bench.DecodeSecondsPerToken(depth, decode_tokens);
    const double peak = bench::PeakFlops(pool, *tier, blocked);
    const double seconds = bench.PrefillSeconds(prefill);
    decode_rate.push_back(1 / decode);
    prefill_rate.push_back(prefill / seconds);
    decode_ratio.push_back(decode_bytes / decode / bandwidth);
    prefill_ratio.push_back(prefill_flops / seconds / peak);
    std::printf(
        "round %d  bandwidth %5.1f GB/s  decode %6.1f tokens/s (%3.0f%%)   peak %6.1f GFLOP/s  prefill %7.1f tokens/s "
        "(%3.0f%%)\n",
        round, bandwidth / 1e9, decode_rate.back(), 100 * decode_ratio.back(), peak / 1e9, prefill_rate.back(),
        100 * prefill_ratio.back());
    std::fflush(stdout);
  }
  std::printf("median   decode %.1f tokens/s, %.0f%% of the bandwidth   prefill %.1f tokens/s, %.0f%% of the peak\n",
              Median(decode_rate), 100 * Median(decode_ratio), Median(prefill_rate), 100 * Median(prefill_ratio));
  return Median(decode_ratio) < min_decode || Median(prefill_ratio) < min_prefill ? 1 : 0;
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) { return scion::Main(argc, argv); }
