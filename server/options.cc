#include "server/options.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <system_error>

namespace scion {
namespace {

constexpr char kDescription[] = "moe-serve: serves a Scion model over gRPC and HTTP (OpenAI's API).";
constexpr char kFooter[] =
    "Example:\n"
    "  moe-serve deploy/demo --http-port 8080 --grpc-port 8081\n"
    "  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"int main(\", \"domain\": \"cpp\"}'\n"
    "\n"
    "Once ready, one line is printed on standard output:\n"
    "  moe-serve: ready http=127.0.0.1:8080 grpc=127.0.0.1:8081\n"
    "SIGTERM or SIGINT: requests that are running are finished, new ones refused; a second signal ends at once.\n"
    "SIGHUP: the log says which generation of each domain is served, and what of it lies on the disk by now.\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.";

// The directory's name, or the file's without ".gguf".
std::string NameOfModel(const std::filesystem::path& model) {
  std::error_code ignored;
  const std::filesystem::path real = std::filesystem::weakly_canonical(model, ignored);
  const std::filesystem::path& path = real.empty() ? model : real;
  const std::string name = (path.extension() == ".gguf" ? path.stem() : path.filename()).string();
  return name.empty() ? "model" : name;
}

// "localhost" and brackets around IPv6 are what people type.
std::string PlainHost(std::string host) {
  if (host == "localhost") return "127.0.0.1";
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') return host.substr(1, host.size() - 2);
  return host;
}

}  // namespace

std::optional<int> ParseOptions(int argc, char** argv, ServeOptions& options) {
  CLI::App app(kDescription, "moe-serve");
  app.footer(kFooter);
  app.set_version_flag("--version", "moe-serve " SCION_VERSION);

  EngineOptions& engine = options.engine;
  HttpServer::Options& http = options.server.http;
  GrpcServer::Options& grpc = options.server.grpc;
  std::string model;
  std::string host = "127.0.0.1";
  http.port = 8080;
  grpc.port = 8081;
  uint64_t kv_cache_mb = engine.kv_cache_bytes >> 20;
  uint64_t max_waiting_mb = engine.max_waiting_bytes >> 20;
  int max_body_mb = 4;
  double request_timeout_seconds = 600;
  double drain_timeout_seconds = 30;
  double write_timeout_seconds = 30;
  std::map<std::string, WeightMode> weight_modes;
  for (WeightMode mode : kAllWeightModes) weight_modes[std::string(WeightModeName(mode))] = mode;
  std::map<std::string, kernels::KvType> kv_types;
  for (kernels::KvType type : kernels::kAllKvTypes) kv_types[std::string(kernels::KvTypeName(type))] = type;
  std::string weights = "as-is";
  std::string kv_type;
  std::string pack_dir;
  std::string prefix_cache = engine.prefix_cache ? "on" : "off";
  double itl_target_ms = absl::ToDoubleMilliseconds(engine.itl_target);

  app.add_option("model,--model", model, "The model: a directory, or a GGUF file")->required();
  app.add_option("--model-name", options.model_name, "What requests call it (default: the directory's or file's name)");
  app.add_option("--host", host, "Address to listen on: an IP address; :: or 0.0.0.0 for all")->capture_default_str();
  app.add_option("--http-port", http.port, "Port for HTTP; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--grpc-port", grpc.port, "Port for gRPC; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--port-file", options.port_file, "Write the ready line's addresses here too, once ready");

  CLI::Option_group& compute = *app.add_option_group("Engine");
  compute.add_option("--threads", engine.num_threads, "Compute threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  compute.add_option("--weights", weights, "as-is, bf16, q8, q4, or fp32 (the reference mode)")
      ->check(CLI::IsMember(weight_modes))
      ->capture_default_str();
  compute.add_option("--pack-dir", pack_dir,
                     "Where packed weights are kept for the next start: a directory, or none (default: "
                     "MODEL.scion-pack, for models of 64 MB and more)");
  compute
      .add_option("--kv-type", kv_type,
                  "Type of cached keys and values (default: fp32 or fp16 where the weights are, else bf16)")
      ->check(CLI::IsMember(kv_types));
  compute.add_option("--kv-cache-mb", kv_cache_mb, "Memory for the KV cache")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 24))
      ->capture_default_str();
  compute.add_option("--max-step-tokens", engine.max_step_tokens, "Token budget of one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  compute
      .add_option("--prefill-chunk", engine.prefill_chunk_tokens,
                  "Tokens of one prompt in one step, as long as others want a part of it")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  compute.add_option("--max-running", engine.max_running_requests, "Requests computed at once")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();

  compute
      .add_option(
          "--itl-target-ms", itl_target_ms,
          "Inter-token latency that prompts may not push a step beyond, unless there are too many requests for it; 0: no "
          "bound")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  compute
      .add_option("--prefix-cache", prefix_cache,
                  "on or off: keep the keys and values of past prompts and answers for those that begin alike")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();

  CLI::Option_group& limits = *app.add_option_group("Limits");
  limits.add_option("--max-waiting", engine.max_waiting_requests, "Requests that may wait; more get 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  limits.add_option("--max-waiting-tokens", engine.max_waiting_tokens, "Prompt tokens that may wait; more get 429")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32))
      ->capture_default_str();
  limits.add_option("--max-waiting-mb", max_waiting_mb, "Memory that waiting requests may hold; more get 429")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 24))
      ->capture_default_str();
  limits.add_option("--max-connections", http.limits.max_connections, "HTTP connections; more get 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  limits.add_option("--max-body-mb", max_body_mb, "Size of a request")->check(CLI::Range(1, 64))->capture_default_str();
  limits.add_option("--request-timeout", request_timeout_seconds, "Seconds until a request is given up")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  limits.add_option("--write-timeout", write_timeout_seconds, "Seconds a client may take to read what was written")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  limits.add_option("--drain-timeout", drain_timeout_seconds, "Seconds that running requests get after SIGTERM")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}))
      ->capture_default_str();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, std::cout, std::cerr) == 0 ? kExitDone : kExitUsage;
  }

  engine.model_directory = model;
  engine.weights = weight_modes.at(weights);
  if (pack_dir.empty()) {
    engine.pack_cache.directory = PackDirectoryBeside(model);
    engine.pack_cache.min_bytes = kMinPackCacheBytes;
  } else if (pack_dir != "none") {
    engine.pack_cache.directory = PackDirectoryIn(pack_dir, model);
  }
  if (!kv_type.empty()) engine.kv_type = kv_types.at(kv_type);
  engine.kv_cache_bytes = kv_cache_mb << 20;
  engine.prefix_cache = prefix_cache == "on";
  engine.itl_target = itl_target_ms > 0 ? absl::Milliseconds(itl_target_ms) : absl::InfiniteDuration();
  engine.max_waiting_bytes = max_waiting_mb << 20;
  if (options.model_name.empty()) options.model_name = NameOfModel(model);
  http.host = grpc.host = PlainHost(host);
  http.limits.max_body_bytes = static_cast<size_t>(max_body_mb) << 20;
  grpc.limits.max_message_bytes = max_body_mb << 20;
  http.limits.write_timeout = grpc.limits.write_timeout = absl::Seconds(write_timeout_seconds);
  options.server.version = SCION_VERSION;
  options.server.request_timeout = absl::Seconds(request_timeout_seconds);
  options.drain_timeout = absl::Seconds(drain_timeout_seconds);
  return std::nullopt;
}

}  // namespace scion
