#include "client/load.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <random>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/text.h"

namespace scion::client {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMaxConcurrency = 1024;

struct Sample {
  absl::Status status;
  double ttft_seconds = kInfinity;
  std::vector<double> itl_seconds;
  int prompt_tokens = 0;
  int output_tokens = 0;
};

v1::GenerateRequest MakeRequest(const LoadOptions& options, int index) {
  v1::GenerateRequest request;
  if (!options.domains.empty()) request.set_domain(options.domains[index % options.domains.size()]);
  if (!options.text.empty()) {
    request.set_text(options.text);
  } else {
    std::mt19937_64 random(options.seed * 0x9E3779B97F4A7C15u + index);
    for (int i = 0; i < options.prompt_tokens; ++i) {
      request.mutable_token_ids()->add_ids(static_cast<int>(random() % options.vocab_size));
    }
  }
  request.set_max_tokens(options.output_tokens);
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(options.seed + index);
  return request;
}

Sample RunRequest(Client& client, const v1::GenerateRequest& request, const CallOptions& options) {
  Sample sample;
  const absl::Time start = absl::Now();
  absl::Time last = start;
  std::unique_ptr<GenerateStream> stream = client.Generate(request, options);
  v1::GenerateResponse response;
  while (stream->Next(&response)) {
    const absl::Time now = absl::Now();
    int tokens = response.tokens_size();
    if (tokens > 0) {
      const double gap_seconds = absl::ToDoubleSeconds(now - last);
      const bool first = sample.output_tokens == 0;
      if (first) sample.ttft_seconds = gap_seconds;
      sample.output_tokens += tokens;
      // Tokens that arrive in one message share the gap before it.
      if (!first) sample.itl_seconds.insert(sample.itl_seconds.end(), tokens, gap_seconds / tokens);
      if (first) sample.itl_seconds.insert(sample.itl_seconds.end(), tokens - 1, 0.0);
      last = now;
    }
    if (response.has_finish()) sample.prompt_tokens = response.finish().usage().prompt_tokens();
  }
  sample.status = stream->Finish();
  if (sample.status.ok() && sample.output_tokens == 0) sample.status = absl::InternalError("no token arrived");
  if (!sample.status.ok()) {
    sample.ttft_seconds = kInfinity;
    sample.itl_seconds.push_back(kInfinity);
  }
  return sample;
}

void Add(Sample sample, LoadResult& result) {
  ++result.requests;
  if (!sample.status.ok()) {
    ++result.failed;
    const std::string text = sample.status.ToString();
    ++result.errors[text.substr(0, text.find('\n'))];
  }
  result.prompt_tokens += sample.prompt_tokens;
  result.output_tokens += sample.output_tokens;
  result.ttft_seconds.push_back(sample.ttft_seconds);
  result.itl_seconds.insert(result.itl_seconds.end(), sample.itl_seconds.begin(), sample.itl_seconds.end());
}

absl::Status Check(const LoadOptions& options) {
  if (options.concurrency < 1 || options.concurrency > kMaxConcurrency) {
    return absl::InvalidArgumentError(absl::StrCat("concurrency must be 1 to ", kMaxConcurrency));
  }
  if (options.requests < 1) return absl::InvalidArgumentError("requests must be at least 1");
  if (options.text.empty() && (options.prompt_tokens < 1 || options.vocab_size < 1)) {
    return absl::InvalidArgumentError("prompt tokens and vocabulary size must be at least 1");
  }
  if (FindInvalidUtf8(options.text)) return absl::InvalidArgumentError("the prompt is not UTF-8");
  if (options.output_tokens < 1) return absl::InvalidArgumentError("output tokens must be at least 1");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(Client& client, const LoadOptions& options, CancelSource& cancel) {
  if (absl::Status status = Check(options); !status.ok()) return status;
  LoadResult result;
  std::mutex mutex;
  std::atomic<int> next{0};
  const absl::Time start = absl::Now();
  const absl::Time end = start + options.total_timeout;
  const auto work = [&] {
    for (int index = next++; index < options.requests; index = next++) {
      Sample sample;
      const absl::Duration left = end - absl::Now();
      if (cancel.cancelled()) {
        sample.status = absl::CancelledError("the load test was stopped");
      } else if (left <= absl::ZeroDuration()) {
        sample.status = absl::DeadlineExceededError("the load test's time was over before this request began");
      } else {
        const CallOptions call{.timeout = std::min(options.request_timeout, left), .cancel = &cancel};
        sample = RunRequest(client, MakeRequest(options, index), call);
      }
      if (!sample.status.ok() && sample.itl_seconds.empty()) sample.itl_seconds.push_back(kInfinity);
      std::lock_guard lock(mutex);
      Add(std::move(sample), result);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < std::min(options.concurrency, options.requests); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  result.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

double Percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return kInfinity;
  const size_t rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(values.size())));
  const size_t index = std::min(std::max<size_t>(rank, 1), values.size()) - 1;
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[index];
}

}  // namespace scion::client
