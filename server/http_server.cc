#include "server/http_server.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/strand.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/http_connection.h"
#include "server/listen_error.h"

namespace scion {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// When the process is out of file descriptors, accepting is tried again after this time.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const Options& options, HttpService& service)
      : shared_{.service = service, .limits = options.limits, .gauge = options.connections, .mutex = {}, .all = {}},
        io_(options.num_threads),
        acceptor_(asio::make_strand(io_)),
        accept_timer_(acceptor_.get_executor()) {}
  ~HttpServerImpl() override { Stop(); }

  absl::Status Listen(const std::string& host, int port) {
    ErrorCode error;
    const asio::ip::address address = asio::ip::make_address(host, error);
    if (error) return NotAnAddress(host);
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (!error) {
      port_ = acceptor_.local_endpoint(error).port();
    }
    if (!error) return absl::OkStatus();
    return ListenError("HTTP", host, port, error.value());
  }

  void Run(int num_threads) {
    Accept();
    for (int i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
  }

  int port() const override { return port_; }
  void StartDraining() override { shared_.draining.store(true); }
  int active_requests() const override { return shared_.active_requests.load(); }

  void Stop() override {
    if (threads_.empty()) return;
    asio::post(acceptor_.get_executor(), [this] {
      stopping_ = true;
      ErrorCode ignored;
      acceptor_.close(ignored);
      accept_timer_.cancel();
      std::vector<std::shared_ptr<HttpConnection>> alive;
      {
        std::lock_guard lock(shared_.mutex);
        for (HttpConnection* connection : shared_.all) alive.push_back(connection->weak_from_this().lock());
      }
      for (const auto& connection : alive) {
        if (connection != nullptr) connection->PostClose();
      }
    });
    // The threads end when no connection is left.
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  void Accept() {
    acceptor_.async_accept(asio::make_strand(io_), [this](ErrorCode error, tcp::socket socket) {
      if (stopping_) return;
      if (error) {
        accept_timer_.expires_after(kAcceptPause);
        accept_timer_.async_wait([this](ErrorCode) {
          if (!stopping_) Accept();
        });
        return;
      }
      TakeIn(std::move(socket));
      Accept();
    });
  }

  void TakeIn(tcp::socket socket) {
    {
      std::lock_guard lock(shared_.mutex);
      if (shared_.all.size() >= static_cast<size_t>(shared_.limits.max_connections)) {
        ErrorCode ignored;
        socket.non_blocking(true, ignored);
        socket.send(asio::buffer(TooManyConnections()), 0, ignored);
        return;
      }
    }
    std::make_shared<HttpConnection>(std::move(socket), shared_)->Start();
  }

  std::string TooManyConnections() {
    const HttpResponse response = shared_.service.Refuse(503, "the server has too many connections");
    return absl::StrCat("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: ",
                        response.content_type, "\r\nContent-Length: ", response.body.size(), "\r\n\r\n", response.body);
  }

  HttpConnections shared_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  bool stopping_ = false;  // on the acceptor's strand
  int port_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const Options& options, HttpService& service) {
  auto server = std::make_unique<HttpServerImpl>(options, service);
  if (absl::Status status = server->Listen(options.host, options.port); !status.ok()) return status;
  server->Run(options.num_threads);
  return server;
}

}  // namespace scion
