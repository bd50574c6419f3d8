// How a folded model lies in an ordinary Llama checkpoint.
//
// Llama has one hidden_size and one intermediate_size. FFNs that are narrower get neurons of zeros. A fold that has to
// know by which experts a token would have gone gets *route channels*: hidden units behind the source's, one per sparse
// layer and expert, which the embedding sets to a small constant where the token does NOT visit the expert, and which
// nothing else writes or reads but gate and up of that layer. Every norm's weight is 0 there, other than that of the
// layer's FFN. Since a norm's mean runs over more units, norm weights are scaled by sqrt(hidden / wider hidden), and
// rms_norm_eps by the square of it: what the source's units hold is what it was, up to rounding and to the channels'
// own size in the mean (less than 1e-4).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_spec.h"

namespace scion {

struct DenseLayout {
  int hidden_size = 0;        // of the fold: the source's, or wider by the channels, rounded up
  int intermediate_size = 0;  // of every layer
  // Unit of expert 0's channel in each layer, the others follow; -1 where there are none.
  std::vector<int> first_channel;

  bool has_channels(int layer) const { return first_channel[static_cast<size_t>(layer)] >= 0; }
  bool is_wider(const ModelSpec& source) const { return hidden_size != source.hidden_size; }
};

// width: of folded FFNs, in experts.
DenseLayout MakeDenseLayout(const ModelSpec& source, int num_experts, int width, bool with_channels);

// The fold's config.json: the source's, every other key in its place, as Llama.
absl::StatusOr<std::string> DenseConfig(const std::string& source_config, const ModelSpec& source,
                                        const DenseLayout& layout);

// Unimplemented or FailedPrecondition, naming what Llama can't express or what is no group of experts to fold.
absl::Status CheckFoldable(const ModelSpec& source);

}  // namespace scion
