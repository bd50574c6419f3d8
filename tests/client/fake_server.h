// A server of scion.v1.Inference in this process, on a free loopback port, with a model that can be computed by hand:
//
//   tokens      one per byte of text; id = byte; BOS is 256
//   Generate    the bytes of `answer`, one token a message
//   Score       log p of every token is -1 under the domain that bears the text's first letter as its name's first
//               letter, -2 under any other
//   domains     "alpha" (default) and "beta"
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "scion/v1/inference.grpc.pb.h"

namespace scion::client {

class FakeServer final : public v1::Inference::Service {
 public:
  static constexpr int kBos = 256;

  FakeServer() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeServer() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  const std::string& address() const { return address_; }

  // What the next answers are.
  std::string answer = "hello";
  grpc::Status generate_status;     // how Generate ends
  bool send_finish = true;          // whether the last message has `finish`
  bool hang = false;                // Generate sends its tokens, then waits until it is cancelled
  std::atomic<int> fail_every = 0;  // every n-th Generate ends with ResourceExhausted after its first token

  // What was asked.
  v1::GenerateRequest last_generate() const {
    std::lock_guard lock(mutex_);
    return last_generate_;
  }
  int cancelled() const { return cancelled_; }
  int most_at_once() const { return most_at_once_; }
  void WaitUntilHanging() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return hanging_; });
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const int now = ++at_once_;
    for (int most = most_at_once_; most < now && !most_at_once_.compare_exchange_weak(most, now);) {
    }
    const int index = ++generates_;
    {
      std::lock_guard lock(mutex_);
      last_generate_ = *request;
    }
    const grpc::Status status = Answer(*context, *request, *writer, index);
    --at_once_;
    return status;
  }

  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request, v1::ScoreResponse* response) override {
    if (request->has_token_ids()) {
      *response->mutable_token_ids() = request->token_ids().ids();
    } else {
      response->add_token_ids(kBos);
      for (const unsigned char byte : request->text()) response->add_token_ids(byte);
    }
    response->set_domain(request->domain().empty() ? "alpha" : request->domain());
    if (response->domain() != "alpha" && response->domain() != "beta") {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "no domain '" + response->domain() + "': alpha, beta");
    }
    const int first = response->token_ids_size() > 1 ? response->token_ids(1) : 0;
    const float logprob = first == response->domain()[0] ? -1 : -2;
    for (int i = 1; i < response->token_ids_size(); ++i) response->add_logprobs(logprob);
    response->set_total_logprob(double{logprob} * response->logprobs_size());
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (request->add_special()) response->add_token_ids(kBos);
    for (const unsigned char byte : request->text()) response->add_token_ids(byte);
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const int id : request->token_ids()) *response->mutable_text() += id == kBos ? "<s>" : std::string(1, id);
    return grpc::Status::OK;
  }

  grpc::Status ListDomains(grpc::ServerContext*, const v1::ListDomainsRequest*,
                           v1::ListDomainsResponse* response) override {
    response->set_model("fake");
    response->set_default_domain("alpha");
    for (const char* name : {"alpha", "beta"}) {
      v1::Domain& domain = *response->add_domains();
      domain.set_name(name);
      domain.set_num_experts(4);
      domain.set_weight_bytes(3 << 20);
    }
    return grpc::Status::OK;
  }

 private:
  grpc::Status Answer(grpc::ServerContext& context, const v1::GenerateRequest& request,
                      grpc::ServerWriter<v1::GenerateResponse>& writer, int index) {
    int sent = 0;
    for (const char character : answer) {
      v1::GenerateResponse response;
      response.set_text(std::string(1, character));
      v1::GeneratedToken& token = *response.add_tokens();
      token.set_id(static_cast<unsigned char>(character));
      if (request.has_logprobs()) token.set_logprob(-0.5F);
      ++sent;
      if (sent == static_cast<int>(answer.size()) && send_finish) {
        response.mutable_finish()->set_reason(v1::Finish::LENGTH);
        response.mutable_finish()->mutable_usage()->set_prompt_tokens(3);
        response.mutable_finish()->mutable_usage()->set_completion_tokens(sent);
      }
      writer.Write(response);
      if (fail_every > 0 && index % fail_every == 0) {
        return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full");
      }
    }
    if (hang) {
      std::unique_lock lock(mutex_);
      hanging_ = true;
      changed_.notify_all();
      while (!context.IsCancelled()) changed_.wait_for(lock, std::chrono::milliseconds(1));
      ++cancelled_;
      return grpc::Status::CANCELLED;
    }
    return generate_status;
  }

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  v1::GenerateRequest last_generate_;
  bool hanging_ = false;
  std::atomic<int> generates_ = 0;
  std::atomic<int> cancelled_ = 0;
  std::atomic<int> at_once_ = 0;
  std::atomic<int> most_at_once_ = 0;
};

}  // namespace scion::client
