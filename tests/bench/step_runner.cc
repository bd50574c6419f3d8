#include "tests/bench/step_runner.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace scion::bench {
namespace {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

absl::StatusOr<std::unique_ptr<StepRunner>> StepRunner::Create(Model& model, const Options& options) {
  const int model_domains = static_cast<int>(model.spec().domains.size());
  if (options.domains > model_domains) {
    return absl::InvalidArgumentError(absl::StrCat("a model of ", model_domains, " domains, not ", options.domains));
  }
  const int blocks = (options.context_tokens + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  absl::StatusOr<KvCache> cache = KvCache::Create(model.KvPlanes(), kernels::kKvBlockTokens, blocks * options.streams);
  if (!cache.ok()) return cache.status();
  return absl::WrapUnique(new StepRunner(model, options, *std::move(cache)));
}

StepRunner::StepRunner(Model& model, const Options& options, KvCache cache)
    : model_(model), options_(options), cache_(std::move(cache)), blocks_(static_cast<size_t>(options.streams)) {
  for (size_t i = 0; std::optional<int32_t> block = cache_.Allocate(); ++i) {
    blocks_[i % blocks_.size()].push_back(*block);
  }
  logits_.resize(blocks_.size() * static_cast<size_t>(model.spec().vocab_size));
}

int32_t StepRunner::RandomToken() { return std::rand() % model_.spec().vocab_size; }

void StepRunner::Run(const std::vector<StepChunk>& chunks, const std::vector<int32_t>& logit_rows) {
  model_.Forward({.token_ids = token_ids_, .chunks = chunks, .logit_rows = logit_rows}, cache_);
  if (!logit_rows.empty()) model_.Logits(0, static_cast<int>(logit_rows.size()), logits_.data());
}

double StepRunner::Prefill(int tokens) {
  double seconds = 0;
  for (int stream = 0; stream < options_.streams; ++stream) {
    for (int position = 0; position < tokens;) {
      const int rows = std::min(tokens - position, model_.options().max_step_rows);
      token_ids_.clear();
      for (int i = 0; i < rows; ++i) token_ids_.push_back(RandomToken());
      std::vector<int32_t> logit_rows;
      if (position + rows == tokens) logit_rows.push_back(rows - 1);
      const double begin = Seconds();
      Run({{.domain = stream % options_.domains,
            .row_begin = 0,
            .num_rows = rows,
            .position = position,
            .blocks = blocks_[static_cast<size_t>(stream)]}},
          logit_rows);
      seconds += Seconds() - begin;
      position += rows;
    }
  }
  position_ = tokens;
  return seconds;
}

double StepRunner::Decode(int steps) {
  std::vector<StepChunk> chunks;
  std::vector<int32_t> logit_rows;
  for (int stream = 0; stream < options_.streams; ++stream) {
    chunks.push_back({.domain = stream % options_.domains,
                      .row_begin = stream,
                      .num_rows = 1,
                      .position = 0,
                      .blocks = blocks_[static_cast<size_t>(stream)]});
    logit_rows.push_back(stream);
  }
  const double begin = Seconds();
  for (int step = 0; step < steps; ++step, ++position_) {
    token_ids_.clear();
    for (StepChunk& chunk : chunks) {
      chunk.position = position_;
      token_ids_.push_back(RandomToken());
    }
    Run(chunks, logit_rows);
  }
  return Seconds() - begin;
}

}  // namespace scion::bench
