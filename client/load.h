// A load generator: many Generate streams at once, and what their clients saw.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/client.h"

namespace scion::client {

struct LoadOptions {
  int concurrency = 8;
  int requests = 64;
  int prompt_tokens = 64;  // random token ids below vocab_size, a function of (seed, request)
  int output_tokens = 64;  // exactly: requests ignore EOS
  int vocab_size = 1024;
  uint64_t seed = 1;
  std::string text = {};                  // the prompt of every request, instead of random ids
  std::vector<std::string> domains = {};  // request i asks domains[i % size]; empty: the server's default
  absl::Duration request_timeout = absl::Seconds(120);
  absl::Duration total_timeout = absl::Minutes(10);  // what has not begun by then is failed, what runs is cut short
};

struct LoadResult {
  int requests = 0;
  int failed = 0;
  std::map<std::string, int> errors;  // first line of the error -> how often
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  double seconds = 0;
  // One entry per request; infinite for one that failed, at whatever point.
  std::vector<double> ttft_seconds;
  // One entry per token but the first of its request; a failed request adds one infinite entry.
  std::vector<double> itl_seconds;
};

// InvalidArgument for options out of range, else OK: failures of requests are part of the result.
absl::StatusOr<LoadResult> RunLoad(Client& client, const LoadOptions& options, CancelSource& cancel);

// The smallest value that at least `fraction` of `values` do not exceed (nearest rank). Infinite for no values.
double Percentile(std::vector<double> values, double fraction);

}  // namespace scion::client
