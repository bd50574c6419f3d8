#include "server/http_connection.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace scion {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using ErrorCode = boost::system::error_code;

constexpr size_t kWriteBytes = size_t{64} << 10;
// Of requests that a client sends before it has the answer to the one before. Beyond that nothing is read until the
// answer is written, and a client that leaves is noticed by the next write only.
constexpr size_t kMaxPipelinedBytes = size_t{64} << 10;
// How long what a refused client still sends is thrown away, so that it can read why it was refused.
constexpr absl::Duration kLingerTime = absl::Seconds(2);

}  // namespace

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, HttpConnections& shared)
    : socket_(std::move(socket)),
      read_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()),
      shared_(shared) {
  std::lock_guard lock(shared_.mutex);
  shared_.all.insert(this);
  if (shared_.gauge != nullptr) ++*shared_.gauge;
}

HttpConnection::~HttpConnection() {
  EndAnswer();
  ChargeBody(0);
  std::lock_guard lock(shared_.mutex);
  shared_.all.erase(this);
  if (shared_.gauge != nullptr) --*shared_.gauge;
}

void HttpConnection::Start() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    ErrorCode ignored;
    self->socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->socket_.non_blocking(true, ignored);
    self->BeginRequest();
  });
}

void HttpConnection::PostClose() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->Close(); });
}

// ---- reading ----

void HttpConnection::BeginRequest() {
  state_ = State::kReading;
  parser_.emplace();
  parser_->eager(true);
  parser_->header_limit(static_cast<uint32_t>(shared_.limits.max_header_bytes));
  parser_->body_limit(shared_.limits.max_body_bytes);
  request_begun_ = false;
  header_read_ = false;
  SetReadDeadline(shared_.limits.idle_timeout);
  Parse();
}

void HttpConnection::StartRead() {
  if (read_pending_ || state_ == State::kClosed) return;
  read_pending_ = true;
  socket_.async_read_some(asio::buffer(received_),
                          [self = shared_from_this()](ErrorCode error, size_t bytes) { self->OnRead(error, bytes); });
}

void HttpConnection::OnRead(ErrorCode error, size_t bytes) {
  read_pending_ = false;
  if (error || state_ == State::kClosed) return Close();
  buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes), asio::buffer(received_, bytes)));
  switch (state_) {
    case State::kReading:
      return Parse();
    case State::kAnswering:
      if (buffer_.size() < kMaxPipelinedBytes) StartRead();
      return;
    case State::kLingering:
      buffer_.consume(buffer_.size());
      return StartRead();
    case State::kClosed:
      return;
  }
}

void HttpConnection::Parse() {
  if (buffer_.size() > 0 && !request_begun_) {
    request_begun_ = true;
    SetReadDeadline(shared_.limits.header_timeout);
  }
  while (buffer_.size() > 0 && !parser_->is_done()) {
    ErrorCode error;
    const size_t consumed = parser_->put(buffer_.data(), error);
    buffer_.consume(consumed);
    if (!error && parser_->is_header_done() && !header_read_) {
      header_read_ = true;
      if (!OnHeaderRead()) return;
    }
    if (header_read_ && !ChargeBody(parser_->get().body().size())) {
      return Refuse(503, "the server is receiving too many large requests at once");
    }
    if (error == http::error::need_more) break;
    if (error) return OnParseError(error);
  }
  if (parser_->is_done()) return Dispatch();
  StartRead();
}

bool HttpConnection::OnHeaderRead() {
  const auto& request = parser_->get();
  is_http_1_0_ = request.version() < 11;
  is_head_ = request.method() == http::verb::head;
  if (request.version() >= 11 && request.count(http::field::host) != 1) {
    Refuse(400, "a request must have one Host header");
    return false;
  }
  if (parser_->is_done()) return true;
  SetReadDeadline(shared_.limits.body_timeout);
  if (boost::beast::iequals(request[http::field::expect], "100-continue") && !is_http_1_0_) {
    // The socket does not block. A client that has left so many answers unread that these bytes find no room is gone.
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    ErrorCode error;
    if (socket_.write_some(asio::buffer(kContinue), error) < kContinue.size()) {
      Close();
      return false;
    }
  }
  return true;
}

bool HttpConnection::ChargeBody(size_t bytes) {
  if (bytes > charged_bytes_) {
    const size_t more = bytes - charged_bytes_;
    charged_bytes_ = bytes;
    return shared_.body_bytes.fetch_add(more) + more <= shared_.limits.max_all_bodies_bytes;
  }
  shared_.body_bytes.fetch_sub(charged_bytes_ - bytes);
  charged_bytes_ = bytes;
  return true;
}

void HttpConnection::OnParseError(ErrorCode error) {
  if (error == http::error::header_limit) {
    return Refuse(431, absl::StrCat("the headers have more than ", shared_.limits.max_header_bytes, " bytes"));
  }
  if (error == http::error::body_limit) {
    return Refuse(413, absl::StrCat("the body has more than ", shared_.limits.max_body_bytes,
                                    " bytes (--max-body-mb of the server)"));
  }
  Refuse(400, absl::StrCat("this is not HTTP/1.1: ", error.message()));
}

void HttpConnection::Dispatch() {
  auto message = parser_->release();
  parser_.reset();
  ChargeBody(0);
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string_view target(message.target().data(), message.target().size());
  request.path = std::string(target.substr(0, target.find('?')));
  for (const auto& field : message) {
    std::string name(field.name_string());
    absl::AsciiStrToLower(&name);
    request.headers.emplace(std::move(name), std::string(field.value()));
  }
  request.body = std::move(message.body());
  keep_alive_ = message.keep_alive();

  read_timer_.cancel();
  state_ = State::kAnswering;
  head_written_ = is_streaming_ = is_last_write_ = false;
  ++shared_.active_requests;
  answer_ = shared_.service.Handle(std::move(request));
  answer_->SetNotify([weak = weak_from_this()] {
    if (auto self = weak.lock()) {
      auto executor = self->socket_.get_executor();
      asio::post(executor, [self = std::move(self)] { self->Advance(); });
    }
  });
  StartRead();
  Advance();
}

void HttpConnection::Refuse(int status, std::string_view message) {
  parser_.reset();
  ChargeBody(0);
  read_timer_.cancel();
  state_ = State::kAnswering;
  keep_alive_ = false;
  head_written_ = is_streaming_ = is_last_write_ = false;
  ++shared_.active_requests;
  answer_ = std::make_unique<ReadyAnswer>(shared_.service.Refuse(status, message));
  Advance();
}

// ---- writing ----

void HttpConnection::Advance() {
  if (state_ != State::kAnswering || write_pending_ || answer_ == nullptr) return;
  if (!head_written_) {
    const std::optional<HttpResponse> response = answer_->TryHead();
    if (!response) return;
    head_written_ = true;
    is_streaming_ = response->has_stream && !is_head_;
    is_last_write_ = !is_streaming_;
    AppendHead(*response);
  }
  if (is_streaming_ && !is_last_write_) AppendBody();
  if (!out_.empty()) StartWrite();
}

void HttpConnection::AppendHead(const HttpResponse& response) {
  if (shared_.draining.load() || (response.has_stream && is_http_1_0_)) keep_alive_ = false;
  const auto reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(response.status)));
  absl::StrAppend(&out_, "HTTP/1.1 ", response.status, " ", absl::string_view(reason.data(), reason.size()),
                  "\r\nDate: ", absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()),
                  "\r\nConnection: ", keep_alive_ ? "keep-alive" : "close", "\r\nX-Content-Type-Options: nosniff\r\n");
  for (const auto& [name, value] : response.headers) absl::StrAppend(&out_, name, ": ", value, "\r\n");
  if (response.status != 204) {
    absl::StrAppend(&out_, "Content-Type: ", response.content_type, "\r\n");
    if (!response.has_stream) {
      absl::StrAppend(&out_, "Content-Length: ", response.body.size(), "\r\n");
    } else if (!is_http_1_0_) {
      absl::StrAppend(&out_, "Transfer-Encoding: chunked\r\n");
    }
  }
  absl::StrAppend(&out_, "\r\n");
  if (!is_head_) out_ += response.body;
}

void HttpConnection::AppendBody() {
  while (out_.size() < kWriteBytes) {
    std::string piece;
    const HttpAnswer::Body result = answer_->TryBody(piece);
    if (is_http_1_0_) {
      out_ += piece;
    } else if (!piece.empty()) {
      absl::StrAppend(&out_, absl::Hex(piece.size()), "\r\n", piece, "\r\n");
    }
    if (result == HttpAnswer::Body::kWait) return;
    if (result == HttpAnswer::Body::kEnd) {
      if (!is_http_1_0_) out_ += "0\r\n\r\n";
      is_last_write_ = true;
      return;
    }
  }
}

void HttpConnection::StartWrite() {
  write_pending_ = true;
  write_timer_.expires_after(absl::ToChronoNanoseconds(shared_.limits.write_timeout));
  write_timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    const bool is_due = self->write_timer_.expiry() <= asio::steady_timer::clock_type::now();
    if (!error && is_due && self->write_pending_) self->Close();
  });
  asio::async_write(socket_, asio::buffer(out_),
                    [self = shared_from_this()](ErrorCode error, size_t) { self->OnWritten(error); });
}

void HttpConnection::OnWritten(ErrorCode error) {
  write_pending_ = false;
  write_timer_.cancel();
  out_.clear();
  if (error || state_ == State::kClosed) return Close();
  if (!is_last_write_) return Advance();
  EndAnswer();
  if (!keep_alive_) return Linger();
  BeginRequest();
}

// ---- the end ----

void HttpConnection::SetReadDeadline(absl::Duration timeout) {
  read_timer_.expires_after(absl::ToChronoNanoseconds(timeout));
  read_timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error && self->read_timer_.expiry() <= asio::steady_timer::clock_type::now()) self->OnReadDeadline();
  });
}

void HttpConnection::OnReadDeadline() {
  if (state_ == State::kReading && request_begun_) {
    return Refuse(408, header_read_ ? "the body of the request did not come in time"
                                    : "the headers of the request did not come in time");
  }
  if (state_ != State::kAnswering) Close();
}

void HttpConnection::Linger() {
  ErrorCode ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  state_ = State::kLingering;
  buffer_.consume(buffer_.size());
  SetReadDeadline(kLingerTime);
  StartRead();
}

void HttpConnection::EndAnswer() {
  if (answer_ == nullptr) return;
  answer_.reset();
  --shared_.active_requests;
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  EndAnswer();
  read_timer_.cancel();
  write_timer_.cancel();
  ErrorCode ignored;
  socket_.close(ignored);
}

}  // namespace scion
