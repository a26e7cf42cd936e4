// Inference of a whole stack of BERT layers on packed tokens in one call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

#include "attention.h"
#include "packed_linear.h"

namespace bertfast {

// What a copy was made of: as long as none of this changed, the copy is good. Same storage and layout, same version
// counter, same few dozen elements; the last guards against writes through `.data`, which count as no version.
class Source {
 public:
  explicit Source(const at::Tensor& t);
  bool is_current(const at::Tensor& t) const;

 private:
  at::Tensor held_;  // keeps the storage, so that no other tensor can have its address meanwhile
  int64_t version_, step_, itemsize_;
  std::vector<uint32_t> samples_;
  int64_t count_;
  std::vector<uint32_t> read() const;
};

class Encoder {
 public:
  using Parameters = std::vector<std::optional<at::Tensor>>;

  // layers: for each the weight and bias of query, key, value, attention output, attention norm, up, down and output
  // norm, 16 in all, and the two norms' eps. dtype: of hidden states.
  Encoder(at::ScalarType dtype, bool int8, int64_t heads, double scale, int64_t activation,
          const std::vector<Parameters>& layers, const std::vector<std::pair<double, double>>& eps);

  // x [T, E] to [T, E]; cu_seqlens [B + 1] int32. Of the last layer only the rows `read`, int64 [R] rising, where
  // given: the result is [R, E]. Safe from several threads at once.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& cu_seqlens, int64_t max_seqlen,
                     const std::optional<at::Tensor>& read) const;

  // Whether the parameters, all layers' one after another, are those it was made of, unchanged.
  bool is_current(const Parameters& parameters) const;

  int64_t nbytes() const;

 private:
  struct Norm {
    at::Tensor weight, bias;
    float eps;
  };
  struct Layer {
    PackedWeight qkv, projection, up, down;
    at::Tensor qkv_bias, projection_bias, up_bias, down_bias;  // float, or undefined
    Norm attention_norm, output_norm;
  };
  struct Share;
  struct Buffers;

  std::vector<Share> shares_of(const std::vector<Sequence>& sequences, int64_t tokens) const;
  void attend(const Layer& layer, const Share& share, const Buffers& b) const;
  // Of `tokens` rows from `token` on.
  void project(const Layer& layer, int64_t token, int64_t tokens, const Buffers& b) const;
  void feed_forward(const Layer& layer, int64_t token, int64_t tokens, const Buffers& b) const;
  void add_norm(const Norm& norm, const void* sum, void* x, int64_t token, int64_t rows, const Buffers& b) const;

  int64_t row_bytes() const { return hidden_ * static_cast<int64_t>(c10::elementSize(dtype_)); }

  at::ScalarType dtype_;
  int64_t heads_, hidden_ = 0, intermediate_ = 0;
  double scale_;
  Activation activation_;
  std::vector<Layer> layers_;
  std::vector<std::optional<Source>> sources_;
};

}  // namespace bertfast
