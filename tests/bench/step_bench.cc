// Speed of single steps against the machine's own limits, measured in turn in the same run; see Description() or
// --help.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "tests/bench/machine_limits.h"
#include "tests/bench/step_runner.h"

namespace scion {
namespace {

constexpr char kDescription[] =
    "step_bench: speed of single steps, each round beside the limits of the machine.\n"
    "decode: --streams sequences, one token a step each, after --depth computed tokens; limit for one stream: read\n"
    "bandwidth over the bytes of active weights and of K and V.\n"
    "prefill: one prompt; limit: peak of the tier's multiply-add (of int8 dot products on blocked weights) over the\n"
    "FLOPs. Exits with 1 when a median share is below --min-decode or --min-prefill.";
constexpr int kWarmUpSteps = 4;

struct Options {
  std::string model;
  WeightMode weights = WeightMode::kAsIs;
  int threads = 2;
  int rounds = 5;
  int prefill = 512;
  int depth = 64;
  int decode = 32;
  int streams = 1;
  int domains = 1;
  double min_decode = 0;
  double min_prefill = 0;
  std::string json;
  std::string pack_dir;
};

std::optional<int> ParseOptions(int argc, char** argv, Options& o) {
  CLI::App app(kDescription, "step_bench");
  std::map<std::string, WeightMode> modes;
  for (WeightMode mode : kAllWeightModes) modes[std::string(WeightModeName(mode))] = mode;
  std::string weights = "as-is";
  app.add_option("model", o.model, "A directory, or a GGUF file")->required();
  app.add_option("--weights", weights, "as-is, bf16, q8, q4 or fp32")->check(CLI::IsMember(modes));
  app.add_option("--threads", o.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--rounds", o.rounds)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--prefill", o.prefill, "Tokens of the prompt; 0: no prefill")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--depth", o.depth, "Tokens of each stream before it decodes")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--decode", o.decode, "Steps of decode; 0: no decode")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--streams", o.streams, "Streams that decode together")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--domains", o.domains, "The streams' domains, in turn")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--min-decode", o.min_decode, "Least share of the bandwidth, one stream");
  app.add_option("--min-prefill", o.min_prefill, "Least share of the peak");
  app.add_option("--json", o.json, "Write every round's figures to this file as well");
  app.add_option("--pack-dir", o.pack_dir, "Take the packed weights from files below this directory, made if need be");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  o.weights = modes.at(weights);
  return std::nullopt;
}

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

// Parameters that one token of one domain uses, without the embedding's look-up.
struct ActiveSize {
  double per_layers = 0;  // all layers
  double last_layer = 0;  // of those, what a prompt needs for its last token only: all but keys and values
  double head = 0;
};

ActiveSize Active(const ModelSpec& s) {
  ActiveSize a;
  const double hidden = s.hidden_size;
  for (const LayerSpec& l : s.layers) {
    const double q = l.attention.num_heads * l.attention.head_dim;
    const double kv = l.attention.num_kv_heads * l.attention.head_dim;
    a.last_layer = hidden * 2 * q + 3 * hidden * l.ffn.intermediate_size * l.ffn.num_experts_per_tok;
    a.per_layers += a.last_layer + hidden * 2 * kv;
  }
  a.head = hidden * s.vocab_size;
  return a;
}

double PrefillFlops(const ModelSpec& spec, const ActiveSize& active, int tokens) {
  if (tokens == 0) return 0;
  double flops = 2 * (active.per_layers * tokens - active.last_layer * (tokens - 1) + active.head);
  const auto attention = [](const LayerSpec& l, double queries, double keys) {
    return 4 * queries * keys * l.attention.num_heads * l.attention.head_dim;
  };
  for (const LayerSpec& l : spec.layers) flops += attention(l, tokens, tokens / 2.0);
  return flops - attention(spec.layers.back(), tokens, tokens / 2.0) + attention(spec.layers.back(), 1, tokens);
}

// One round; a figure that was not asked for is absent. Rates are tokens/s of all streams together.
struct Round {
  double bandwidth = 0;  // bytes/s
  double peak = 0;       // operations/s
  std::optional<double> decode, decode_share, prefill, prefill_share;
};

void Print(int number, const Round& r) {
  std::printf("round %d ", number);
  if (r.decode) std::printf(" bandwidth %5.1f GB/s  decode %6.1f tokens/s", r.bandwidth / 1e9, *r.decode);
  if (r.decode_share) std::printf(" (%3.0f%%)", 100 * *r.decode_share);
  if (r.prefill) {
    std::printf("   peak %6.1f GFLOP/s  prefill %7.1f tokens/s (%3.0f%%)", r.peak / 1e9, *r.prefill,
                100 * *r.prefill_share);
  }
  std::printf("\n");
  std::fflush(stdout);
}

nlohmann::json ToJson(const Round& r) {
  nlohmann::json out;
  if (r.decode) out["decode"] = *r.decode, out["bandwidth"] = r.bandwidth;
  if (r.decode_share) out["decode_share"] = *r.decode_share;
  if (r.prefill) out["prefill"] = *r.prefill, out["prefill_share"] = *r.prefill_share, out["peak"] = r.peak;
  return out;
}

int Fail(const absl::Status& status) { return std::fprintf(stderr, "%s\n", status.ToString().c_str()), 1; }

int Main(int argc, char** argv) {
  Options o;
  if (const std::optional<int> code = ParseOptions(argc, argv, o)) return *code;
  absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  ThreadPool pool(o.threads);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(o.model);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  ModelOptions options{.tier = *tier,
                       .weights = o.weights,
                       .max_step_rows = std::max({o.prefill, o.streams, 512}),
                       .max_logit_rows = std::max(o.streams, 32)};
  if (!o.pack_dir.empty()) options.pack_cache.directory = PackDirectoryIn(o.pack_dir, o.model);
  absl::StatusOr<std::unique_ptr<Model>> loaded = Model::Load(**checkpoint, options, pool);
  if (!loaded.ok()) return Fail(loaded.status());
  Model& model = **loaded;
  absl::StatusOr<std::unique_ptr<bench::StepRunner>> runner = bench::StepRunner::Create(
      model, {.streams = o.streams, .domains = o.domains, .context_tokens = o.depth + kWarmUpSteps + o.decode});
  if (!runner.ok()) return Fail(runner.status());
  absl::StatusOr<std::unique_ptr<bench::StepRunner>> prompt =
      bench::StepRunner::Create(model, {.context_tokens = std::max(o.prefill, 1)});
  if (!prompt.ok()) return Fail(prompt.status());

  const ActiveSize active = Active(model.spec());
  double decode_bytes = static_cast<double>(model.active_weight_bytes(0));
  const bool blocked = decode_bytes < 1.6 * (active.per_layers + active.head);  // mostly 8-bit and 4-bit codes
  for (const KvPlaneSpec& plane : model.KvPlanes()) {
    decode_bytes += static_cast<double>(plane.bytes_per_token) * (o.depth + kWarmUpSteps + o.decode / 2.0);
  }
  const double prefill_flops = PrefillFlops(model.spec(), active, o.prefill);
  std::printf("model %s  tier %s  threads %d  weights %.0f MB  active %.0f MB/token  prefill %.1f GFLOP\n",
              o.model.c_str(), std::string(kernels::TierName(*tier)).c_str(), o.threads,
              static_cast<double>(model.weight_bytes()) / 1e6, decode_bytes / 1e6, prefill_flops / 1e9);

  std::vector<double> decode, decode_share, prefill, prefill_share;
  nlohmann::json rounds = nlohmann::json::array();
  if (o.prefill > 0) (*prompt)->Prefill(o.prefill);
  for (int number = 0; number < o.rounds; ++number) {
    Round round;
    if (o.decode > 0) {
      (*runner)->Prefill(o.depth);
      (*runner)->Decode(kWarmUpSteps);
      round.bandwidth = bench::ReadBandwidth(pool);
      const double seconds_per_step = (*runner)->Decode(o.decode) / o.decode;
      decode.push_back(*(round.decode = o.streams / seconds_per_step));
      if (o.streams == 1) {
        decode_share.push_back(*(round.decode_share = decode_bytes / seconds_per_step / round.bandwidth));
      }
    }
    if (o.prefill > 0) {
      round.peak = bench::PeakFlops(pool, *tier, blocked);
      const double seconds = (*prompt)->Prefill(o.prefill);
      prefill.push_back(*(round.prefill = o.prefill / seconds));
      prefill_share.push_back(*(round.prefill_share = prefill_flops / seconds / round.peak));
    }
    Print(number, round);
    rounds.push_back(ToJson(round));
  }
  std::printf("median   decode %.1f tokens/s, %.0f%% of the bandwidth   prefill %.1f tokens/s, %.0f%% of the peak\n",
              Median(decode), 100 * Median(decode_share), Median(prefill), 100 * Median(prefill_share));
  if (!o.json.empty()) {
    std::ofstream file(o.json);
    file << nlohmann::json({{"tier", kernels::TierName(*tier)}, {"active_bytes", decode_bytes}, {"rounds", rounds}})
         << "\n";
    if (!file.flush()) return std::fprintf(stderr, "cannot write %s\n", o.json.c_str()), 1;
  }
  return Median(decode_share) < o.min_decode || Median(prefill_share) < o.min_prefill ? 1 : 0;
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) { return scion::Main(argc, argv); }
