#include "server/domain_choice.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "server/request_error.h"

namespace scion {
namespace {

// In a message, which over gRPC must fit a header.
constexpr size_t kMaxNamesListed = 64;

std::string DomainNames(const ModelSpec& spec) {
  const size_t listed = std::min(spec.domains.size(), kMaxNamesListed);
  std::string names = absl::StrJoin(spec.domains.begin(), spec.domains.begin() + static_cast<ptrdiff_t>(listed), ", ",
                                    [](std::string* out, const DomainSpec& d) { out->append(d.name); });
  if (listed < spec.domains.size()) absl::StrAppend(&names, ", ... (", spec.domains.size(), " in all)");
  return names;
}

}  // namespace

absl::StatusOr<int> ChooseDomain(const ModelSpec& spec, std::string_view served_model, std::string_view requested_model,
                                 std::vector<DomainWish> wishes) {
  if (!requested_model.empty() && requested_model != served_model) {
    const size_t at = requested_model.rfind('@');
    if (requested_model.substr(0, at) != served_model) {
      return WithErrorCode(
          WithParameter(absl::NotFoundError(absl::StrCat("there is no model ", Quoted(requested_model),
                                                         "; this server has ", Quoted(served_model), ", also as ",
                                                         Quoted(std::string(served_model) + "@DOMAIN"))),
                        "model"),
          "model_not_found");
    }
    wishes.push_back({.source = "model", .domain = std::string(requested_model.substr(at + 1))});
    if (wishes.back().domain.empty()) return InvalidParameter("model", "the model's name ends in '@' without a domain");
  }

  const DomainWish* chosen = nullptr;
  for (const DomainWish& wish : wishes) {
    if (wish.domain.empty()) continue;
    if (chosen != nullptr && chosen->domain != wish.domain) {
      return InvalidParameter(
          chosen->source, absl::StrCat("the request names two domains: ", Quoted(chosen->domain), " (", chosen->source,
                                       ") and ", Quoted(wish.domain), " (", wish.source, ")"));
    }
    chosen = &wish;
  }
  if (chosen == nullptr) return spec.default_domain;
  if (const std::optional<int> domain = spec.FindDomain(chosen->domain)) return *domain;
  return WithErrorCode(WithParameter(absl::NotFoundError(absl::StrCat("there is no domain ", Quoted(chosen->domain),
                                                                      "; there are: ", DomainNames(spec))),
                                     chosen->source),
                       "domain_not_found");
}

}  // namespace scion
