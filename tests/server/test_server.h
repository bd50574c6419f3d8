// A whole server in this process, on free ports of the loopback, in front of a FakeEngine.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "server/server.h"
#include "tests/server/fake_engine.h"

namespace scion {

class TestServer {
 public:
  static ServerOptions DefaultOptions() {
    ServerOptions options;
    options.version = "1.2.3";
    return options;
  }

  explicit TestServer(ServerOptions options = DefaultOptions(), bool open = true) {
    auto server = Server::Start(std::move(options));
    if (!server.ok()) ADD_FAILURE() << server.status();
    server_ = *std::move(server);
    if (open) Open();
  }
  ~TestServer() { server_->Stop(); }

  void Open() {
    auto engine = std::make_unique<FakeEngine>();
    engine_ = engine.get();
    server_->Open({.engine = std::move(engine), .name = "demo", .sampling_defaults = {.temperature = 0.5f}});
  }

  FakeEngine& engine() { return *engine_; }
  Server& operator*() { return *server_; }
  Server* operator->() { return server_.get(); }
  int http_port() const { return server_->http_port(); }
  int grpc_port() const { return server_->grpc_port(); }

 private:
  std::unique_ptr<Server> server_;
  FakeEngine* engine_ = nullptr;  // owned by server_
};

}  // namespace scion
