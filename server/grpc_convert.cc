#include "server/grpc_convert.h"

#include <algorithm>
#include <string>

#include "server/request_error.h"

namespace scion {
namespace {

std::vector<DomainWish> Wishes(const std::string& domain, const grpc::CallbackServerContext& ctx) {
  std::vector<DomainWish> wishes = {{.source = "domain", .domain = domain}};
  const auto [begin, end] = ctx.client_metadata().equal_range("x-scion-domain");
  for (auto it = begin; it != end; ++it) {
    wishes.push_back({.source = "x-scion-domain", .domain = std::string(it->second.data(), it->second.size())});
  }
  return wishes;
}

absl::Time Deadline(const grpc::CallbackServerContext& ctx) {
  const auto deadline = ctx.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

std::vector<int32_t> Ids(const v1::TokenIds& ids) { return {ids.ids().begin(), ids.ids().end()}; }

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::StatusOr<GenerationRequest> FromProto(const v1::GenerateRequest& request,
                                            const grpc::CallbackServerContext& ctx) {
  GenerationRequest out;
  out.model = request.model();
  out.domain_wishes = Wishes(request.domain(), ctx);
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      out.prompt = request.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      out.prompt = Ids(request.token_ids());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return InvalidParameter("prompt", "the request has no prompt");
  }
  if (request.has_max_tokens()) out.max_tokens = request.max_tokens();
  const v1::Sampling& sampling = request.sampling();
  if (sampling.has_temperature()) out.temperature = sampling.temperature();
  if (sampling.has_top_p()) out.top_p = sampling.top_p();
  if (sampling.has_top_k()) out.top_k = sampling.top_k();
  if (sampling.has_seed()) out.seed = sampling.seed();
  out.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  out.stop.assign(request.stop().begin(), request.stop().end());
  out.ignore_eos = request.ignore_eos();
  if (request.has_logprobs()) out.logprobs = request.logprobs();
  out.cache_salt = request.cache_salt();
  out.deadline = Deadline(ctx);
  return out;
}

absl::StatusOr<ScoringRequest> FromProto(const v1::ScoreRequest& request, const grpc::CallbackServerContext& ctx) {
  ScoringRequest out;
  out.model = request.model();
  out.domain_wishes = Wishes(request.domain(), ctx);
  switch (request.prompt_case()) {
    case v1::ScoreRequest::kText:
      out.prompt = request.text();
      break;
    case v1::ScoreRequest::kTokenIds:
      out.prompt = Ids(request.token_ids());
      break;
    case v1::ScoreRequest::PROMPT_NOT_SET:
      return InvalidParameter("prompt", "the request has no prompt");
  }
  out.cache_salt = request.cache_salt();
  out.deadline = Deadline(ctx);
  return out;
}

void ToProto(const TextChunk& chunk, const Tokenizer* tokenizer, v1::GenerateResponse& out) {
  out.Clear();
  out.set_text(chunk.text);
  for (const TextToken& token : chunk.tokens) {
    v1::GeneratedToken& added = *out.add_tokens();
    added.set_id(token.id);
    if (token.logprob) added.set_logprob(*token.logprob);
    for (const TokenLogprob& top : token.top) {
      v1::TokenLogprob& one = *added.add_top_logprobs();
      one.set_token_id(top.token_id);
      one.set_logprob(top.logprob);
      if (tokenizer != nullptr) one.set_token(std::string(tokenizer->TokenBytes(top.token_id)));
    }
  }
  if (!chunk.finish || chunk.finish->reason == TextFinish::Reason::kError) return;
  v1::Finish& finish = *out.mutable_finish();
  finish.set_reason(chunk.finish->reason == TextFinish::Reason::kLength ? v1::Finish::LENGTH : v1::Finish::STOP);
  finish.mutable_usage()->set_prompt_tokens(chunk.finish->usage.prompt_tokens);
  finish.mutable_usage()->set_completion_tokens(chunk.finish->usage.completion_tokens);
  finish.mutable_usage()->set_cached_prompt_tokens(chunk.finish->usage.cached_prompt_tokens);
}

}  // namespace scion
