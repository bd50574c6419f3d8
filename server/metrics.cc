#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/text_serializer.h>

#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace scion {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class FamilyBuilder {
 public:
  FamilyBuilder(std::vector<MetricFamily>& families, MetricType type, std::string name, std::string help) {
    families.push_back({.name = std::move(name), .help = std::move(help), .type = type, .metric = {}});
    family_ = &families.back();
  }
  FamilyBuilder& Add(double value, Labels labels = {}) {
    ClientMetric& metric = family_->metric.emplace_back();
    metric.label = std::move(labels);
    (family_->type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    return *this;
  }

 private:
  MetricFamily* family_;
};

void AddEngine(const Engine& engine, std::vector<MetricFamily>& families) {
  const EngineStats stats = engine.Stats();
  auto gauge = [&](const char* name, const char* help, double value) {
    FamilyBuilder(families, MetricType::Gauge, name, help).Add(value);
  };
  auto counter = [&](const char* name, const char* help, double value) {
    FamilyBuilder(families, MetricType::Counter, name, help).Add(value);
  };
  gauge("scion_requests_waiting", "Requests that wait for their first step", stats.waiting_requests);
  gauge("scion_waiting_tokens", "Prompt tokens of the waiting requests", static_cast<double>(stats.waiting_tokens));
  gauge("scion_waiting_bytes", "Memory that the waiting requests hold", static_cast<double>(stats.waiting_bytes));
  gauge("scion_requests_running", "Requests that are being computed", stats.running_requests);
  gauge("scion_requests_running_max", "The most requests that were running in one step since start",
        stats.max_running_seen);
  gauge("scion_kv_blocks_in_use", "KV cache blocks that belong to requests", stats.kv_blocks_in_use);
  gauge("scion_kv_blocks_cached", "KV cache blocks that no request holds, but that the prefix cache can still give",
        stats.kv_blocks_cached);
  gauge("scion_kv_blocks_total", "KV cache blocks", stats.kv_blocks_total);
  counter("scion_prefix_cache_hit_tokens_total", "Tokens of requests that the prefix cache had",
          static_cast<double>(stats.prefix_hit_tokens));
  counter("scion_prefix_cache_miss_tokens_total", "Tokens of requests that it did not have",
          static_cast<double>(stats.prefix_miss_tokens));
  counter("scion_prefix_cache_evictions_total", "Blocks that left the prefix cache because their memory was needed",
          static_cast<double>(stats.prefix_evictions));
  counter("scion_engine_steps_total", "Steps of the engine", static_cast<double>(stats.steps));
  counter("scion_preemptions_total", "Requests put back for want of KV cache", static_cast<double>(stats.preemptions));
  counter("scion_engine_requests_finished_total", "Requests that the engine has ended",
          static_cast<double>(stats.requests_finished));
  counter("scion_engine_requests_cancelled_total", "Requests that their caller ended: clients that left, stop strings",
          static_cast<double>(stats.requests_cancelled));
  gauge("scion_weight_bytes", "Packed weights of trunk and domains", static_cast<double>(stats.weight_bytes));
  gauge("scion_weight_bytes_shared", "Of scion_weight_bytes, mapped from cache files (--pack-dir)",
        static_cast<double>(stats.shared_weight_bytes));

  auto per_domain = [&](MetricType type, const char* name, const char* help, auto value) {
    FamilyBuilder family(families, type, name, help);
    for (const DomainStats& d : stats.domains) family.Add(static_cast<double>(value(d)), {{"domain", d.name}});
  };
  per_domain(MetricType::Counter, "scion_domain_requests_total", "Requests accepted",
             [](const DomainStats& d) { return d.requests; });
  per_domain(MetricType::Counter, "scion_prompt_tokens_total", "Prompt tokens computed",
             [](const DomainStats& d) { return d.prompt_tokens; });
  per_domain(MetricType::Counter, "scion_generated_tokens_total", "Tokens generated",
             [](const DomainStats& d) { return d.generated_tokens; });
  per_domain(MetricType::Gauge, "scion_domain_weight_bytes", "Packed weights of the domain's experts",
             [](const DomainStats& d) { return d.weight_bytes; });

  const std::vector<int> sparse_layers = engine.spec().SparseLayers();
  FamilyBuilder experts(families, MetricType::Counter, "scion_expert_tokens_total",
                        "Tokens that the expert computed; in the last layer, those whose logits were wanted");
  for (const DomainStats& d : stats.domains) {
    for (size_t l = 0; l < d.expert_tokens.size() && l < sparse_layers.size(); ++l) {
      for (size_t e = 0; e < d.expert_tokens[l].size(); ++e) {
        experts.Add(static_cast<double>(d.expert_tokens[l][e]),
                    {{"domain", d.name}, {"layer", std::to_string(sparse_layers[l])}, {"expert", std::to_string(e)}});
      }
    }
  }
}

}  // namespace

ServerMetrics::ServerMetrics()
    : requests_(prometheus::BuildCounter()
                    .Name("scion_requests_total")
                    .Help("Requests for generation or scoring that have ended, by transport and status code")
                    .Register(registry_)),
      time_to_first_token_(prometheus::BuildHistogram()
                               .Name("scion_time_to_first_token_seconds")
                               .Help("From the admission of a request to its first token")
                               .Register(registry_)
                               .Add({}, prometheus::Histogram::BucketBoundaries{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                                                0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30})),
      inter_token_latency_(prometheus::BuildHistogram()
                               .Name("scion_inter_token_latency_seconds")
                               .Help("From one token of a request to its next")
                               .Register(registry_)
                               .Add({}, prometheus::Histogram::BucketBoundaries{0.0005, 0.001, 0.0025, 0.005, 0.01,
                                                                                0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5})) {
}

void ServerMetrics::RequestEnded(Transport transport, absl::StatusCode code) {
  requests_
      .Add({{"transport", transport == Transport::kHttp ? "http" : "grpc"}, {"code", absl::StatusCodeToString(code)}})
      .Increment();
}
void ServerMetrics::ObserveTimeToFirstToken(double seconds) { time_to_first_token_.Observe(seconds); }
void ServerMetrics::ObserveInterTokenLatency(double seconds) { inter_token_latency_.Observe(seconds); }

std::string ServerMetrics::Text(const Engine* engine, std::string_view version, bool ready) const {
  std::vector<MetricFamily> families = registry_.Collect();
  Labels build = {{"version", std::string(version)}};
  if (engine != nullptr) {
    const EngineOptions& options = engine->options();
    if (options.tier) build.push_back({"tier", std::string(kernels::TierName(*options.tier))});
    build.push_back({"weights", std::string(WeightModeName(options.weights))});
    build.push_back({"threads", std::to_string(options.num_threads)});
  }
  FamilyBuilder(families, MetricType::Gauge, "scion_build_info", "What runs here").Add(1, std::move(build));
  FamilyBuilder(families, MetricType::Gauge, "scion_ready", "1 while requests are taken").Add(ready ? 1 : 0);
  FamilyBuilder(families, MetricType::Gauge, "scion_http_connections", "Open HTTP connections").Add(http_connections);
  FamilyBuilder(families, MetricType::Gauge, "scion_grpc_calls", "gRPC calls in flight").Add(grpc_calls);
  if (engine != nullptr) AddEngine(*engine, families);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace scion
