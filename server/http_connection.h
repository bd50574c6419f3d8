// One HTTP connection: reads requests, one at a time, and writes their answers.
//
// A read is always pending, also while a request is answered: so a client that leaves (FIN or RST) is noticed at once,
// and its request is cancelled. Everything happens on the connection's strand.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>

#include "server/http_message.h"
#include "server/http_server.h"

namespace scion {

class HttpConnection;

// What the connections of a server share.
struct HttpConnections {
  HttpService& service;
  const HttpLimits limits;
  std::atomic<int>* gauge;
  std::atomic<int> active_requests{0};
  std::atomic<size_t> body_bytes{0};
  std::atomic<bool> draining{false};
  std::mutex mutex;
  std::unordered_set<HttpConnection*> all;  // guarded by mutex
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  // The socket's executor is a strand.
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpConnections& shared);
  ~HttpConnection();

  void Start();
  // Any thread.
  void PostClose();

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State { kReading, kAnswering, kLingering, kClosed };

  void BeginRequest();
  void StartRead();
  void OnRead(boost::system::error_code error, size_t bytes);
  void Parse();
  // False: the request was refused.
  bool OnHeaderRead();
  bool ChargeBody(size_t bytes);
  void OnParseError(boost::system::error_code error);
  void Dispatch();
  void Refuse(int status, std::string_view message);

  void Advance();
  void AppendHead(const HttpResponse& response);
  void AppendBody();
  void StartWrite();
  void OnWritten(boost::system::error_code error);

  void SetReadDeadline(absl::Duration timeout);
  void OnReadDeadline();
  void Linger();
  void EndAnswer();
  void Close();

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer read_timer_;
  boost::asio::steady_timer write_timer_;
  HttpConnections& shared_;
  State state_ = State::kReading;

  // Where the pending read writes. Not in buffer_: what came before may be parsed, and buffer_ change, meanwhile.
  std::array<char, 16 << 10> received_;
  boost::beast::flat_buffer buffer_;  // received, not yet parsed
  std::optional<Parser> parser_;
  bool read_pending_ = false;
  bool request_begun_ = false;  // a byte of it has come
  bool header_read_ = false;
  size_t charged_bytes_ = 0;  // of shared_.body_bytes

  std::unique_ptr<HttpAnswer> answer_;
  bool keep_alive_ = false;
  bool is_head_ = false;
  bool is_http_1_0_ = false;
  bool head_written_ = false;
  bool is_streaming_ = false;
  bool is_last_write_ = false;
  bool write_pending_ = false;
  std::string out_;
};

}  // namespace scion
