// Between the messages of scion.v1 and what the server works with.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"
#include "scion/v1/inference.pb.h"
#include "server/generation_request.h"
#include "server/text_stream.h"

namespace scion {

grpc::Status ToGrpc(const absl::Status& status);

// Deadline and x-scion-domain come from the context. InvalidArgument: no prompt.
absl::StatusOr<GenerationRequest> FromProto(const v1::GenerateRequest& request, const grpc::CallbackServerContext& ctx);
absl::StatusOr<ScoringRequest> FromProto(const v1::ScoreRequest& request, const grpc::CallbackServerContext& ctx);

// All of the chunk but an error. `tokenizer` may be null.
void ToProto(const TextChunk& chunk, const Tokenizer* tokenizer, v1::GenerateResponse& out);

}  // namespace scion
