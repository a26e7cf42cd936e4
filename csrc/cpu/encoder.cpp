// The layers one after another on buffers that are made once a call and used by all of them: nothing is dispatched,
// looked up or allocated between two products, which is most of the time of a short batch otherwise. The feed-forward
// half goes through a few hundred tokens at a time, so that its wide middle stays in cache. Where the sequences can be
// dealt out evenly each thread takes a share of them through all layers, and waits for no other thread on the way.
#include "encoder.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <cstring>

#include "attention.h"
#include "host.h"
#include "huge_pages.h"
#include "norm_host.h"

namespace bertfast {
namespace {

constexpr int64_t kSamples = 32;
constexpr size_t kParameters = 16;      // of a layer
constexpr int64_t kMiddleTokens = 576;  // 576 x 3072 floats are 7 MB
constexpr int64_t kAlign = 16;          // floats of a cache line: buffers begin on one
constexpr int64_t kShareTokens = 128;   // of a thread's own share at least
constexpr int64_t kShareMiddle = 192;   // of its middle, where an even part of kMiddleTokens is less
constexpr double kShareExcess = 1.03;   // of the largest share over an even one at most: the others wait for it

at::Tensor joined(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

at::Tensor bias_of(const std::vector<std::optional<at::Tensor>>& biases) {
  std::vector<at::Tensor> present;
  for (const auto& bias : biases) {
    if (bias.has_value()) present.push_back(as_float(bias->detach()));
  }
  TORCH_CHECK_VALUE(present.empty() || present.size() == biases.size(),
                    "encoder: either all of query, key and value have a bias or none has one");
  // A copy, so that no parameter can change behind it.
  return present.empty() ? at::Tensor() : joined(present).clone();
}

const float* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

void check_shape(const at::Tensor& t, at::IntArrayRef shape, const char* what) {
  TORCH_CHECK_VALUE(t.sizes() == shape, "encoder: ", what, " has shape ", t.sizes(), " where ", shape,
                    " belongs to the other weights");
}

at::Tensor checked_rows(const at::Tensor& read, int64_t tokens) {
  TORCH_CHECK_VALUE(read.device().is_cpu() && read.dim() == 1 && read.scalar_type() == at::kLong,
                    "encoder: read must be int64 [R] on a CPU, got ", read.scalar_type(), " ", read.sizes());
  const at::Tensor rows = read.contiguous();
  const int64_t* index = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < tokens, "encoder: row ", index[i], " at position ", i,
                      " of read is outside the ", tokens, " tokens");
    TORCH_CHECK_VALUE(i == 0 || index[i] > index[i - 1], "encoder: read must rise, but row ", index[i], " follows row ",
                      index[i - 1]);
  }
  return rows;
}

constexpr int64_t kReadTogether = 48;  // queries near each other share a pass over the keys

// Items that cover the rows `read` alone, which rise.
std::vector<AttentionItem> items_at(const int64_t* read, int64_t count, const std::vector<Sequence>& sequences,
                                    int64_t heads) {
  std::vector<AttentionItem> items;
  size_t b = 0;
  for (int64_t i = 0; i < count;) {
    while (read[i] >= sequences[b].first_token + sequences[b].length) ++b;
    const Sequence& s = sequences[b];
    const int64_t begin = read[i] - s.first_token, limit = std::min(s.length, begin + kReadTogether);
    int64_t end = begin;
    for (; i < count && read[i] - s.first_token < limit; ++i) end = read[i] - s.first_token + 1;
    for (int64_t h = 0; h < heads; ++h) {
      items.push_back({s.first_token, s.length, begin, end, static_cast<int64_t>(b), h, s.lse_base + h * s.lse_head});
    }
  }
  return items;
}

}  // namespace

Source::Source(const at::Tensor& t) : held_(t.detach()), version_(t.is_inference() ? -1 : t._version()) {
  itemsize_ = t.itemsize();
  if (t.is_contiguous()) {
    // An odd step walks through the columns; an even one would stay in column 0 of most weights.
    step_ = std::max<int64_t>(1, t.numel() / kSamples) | 1;
    count_ = (t.numel() + step_ - 1) / step_;
  } else if (t.dim() == 2) {
    const int64_t diagonal = std::min(t.size(0), t.size(1)), jump = std::max<int64_t>(1, diagonal / kSamples);
    step_ = jump * (t.stride(0) + t.stride(1));
    count_ = (diagonal + jump - 1) / jump;
  } else {
    step_ = t.stride(0);
    count_ = t.size(0);
  }
  samples_ = read();
}

std::vector<uint32_t> Source::read() const {
  std::vector<uint32_t> found(count_, 0);
  const char* at = static_cast<const char*>(held_.const_data_ptr());
  for (int64_t i = 0; i < count_; ++i) std::memcpy(&found[i], at + i * step_ * itemsize_, itemsize_);
  return found;
}

bool Source::is_current(const at::Tensor& t) const {
  // A subclass that answers for its own memory (fake, sharded, quantized) may have none to look at.
  if (t.unsafeGetTensorImpl()->is_python_dispatch() || !t.device().is_cpu()) return false;
  if (t.const_data_ptr() != held_.const_data_ptr() || t.sizes() != held_.sizes() || t.strides() != held_.strides() ||
      t.scalar_type() != held_.scalar_type() ||
      (t.is_inference() ? -1 : static_cast<int64_t>(t._version())) != version_) {
    return false;
  }
  const int64_t end = (held_.storage_offset() + (count_ > 0 ? (count_ - 1) * step_ + 1 : 0)) * itemsize_;
  if (static_cast<int64_t>(held_.storage().nbytes()) < end) return false;  // emptied, as sharding libraries do
  const char* at = static_cast<const char*>(held_.const_data_ptr());
  for (int64_t i = 0; i < count_; ++i) {
    if (std::memcmp(&samples_[i], at + i * step_ * itemsize_, itemsize_) != 0) return false;
  }
  return true;
}

Encoder::Encoder(at::ScalarType dtype, bool int8, int64_t heads, double scale, int64_t activation,
                 const std::vector<Parameters>& layers, const std::vector<std::pair<double, double>>& eps)
    : dtype_(dtype), heads_(heads), scale_(scale), activation_(static_cast<Activation>(activation)) {
  TORCH_CHECK_VALUE(!layers.empty() && layers.size() == eps.size() && activation >= 0 && activation <= 2,
                    "encoder: needs at least one layer, an eps pair for each, and activation 0, 1 or 2");
  for (size_t i = 0; i < layers.size(); ++i) {
    const Parameters& p = layers[i];
    TORCH_CHECK_VALUE(p.size() == kParameters, "encoder: layer ", i, " has ", p.size(), " parameters, not 16");
    for (size_t j = 0; j < kParameters; ++j) {
      TORCH_CHECK_VALUE(j % 2 == 1 || p[j].has_value(), "encoder: a weight of layer ", i, " is missing");
      TORCH_CHECK_VALUE(!p[j].has_value() || (is_kernel_dtype(*p[j]) && p[j]->device().is_cpu()), "encoder: parameter ",
                        j, " of layer ", i, " must be float32 or bfloat16 on a CPU, got ", p[j]->scalar_type(), " on ",
                        p[j]->device());
      sources_.push_back(p[j].has_value() ? std::optional<Source>(Source(*p[j])) : std::nullopt);
    }
    if (i == 0) {
      hidden_ = p[0]->size(1);
      intermediate_ = p[10]->size(0);
    }
    for (int j : {0, 2, 4, 6}) check_shape(*p[j], {hidden_, hidden_}, "a weight of the attention");
    check_shape(*p[10], {intermediate_, hidden_}, "the first feed-forward weight");
    check_shape(*p[12], {hidden_, intermediate_}, "the second feed-forward weight");
    for (int j : {8, 9, 14, 15}) {
      TORCH_CHECK_VALUE(p[j].has_value(), "encoder: a norm of layer ", i, " has no weight or no bias");
      check_shape(*p[j], {hidden_}, "a norm's parameter");
    }
    TORCH_CHECK_VALUE(heads > 0 && hidden_ % heads == 0 && hidden_ / heads <= kLargestHead, "encoder: ", hidden_,
                      " hidden units do not make ", heads, " heads of at most ", kLargestHead);
    auto norm = [](const at::Tensor& weight, const at::Tensor& bias, double e) {
      return Norm{as_float(weight.detach()).clone(), as_float(bias.detach()).clone(), static_cast<float>(e)};
    };
    const at::Tensor qkv = at::cat({p[0]->detach(), p[2]->detach(), p[4]->detach()});
    layers_.push_back({pack_weight(qkv, dtype, int8), pack_weight(*p[6], dtype, int8), pack_weight(*p[10], dtype, int8),
                       pack_weight(*p[12], dtype, int8), bias_of({p[1], p[3], p[5]}), bias_of({p[7]}), bias_of({p[11]}),
                       bias_of({p[13]}), norm(*p[8], *p[9], eps[i].first), norm(*p[14], *p[15], eps[i].second)});
  }
}

bool Encoder::is_current(const Parameters& parameters) const {
  if (parameters.size() != sources_.size()) return false;
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (parameters[i].has_value() != sources_[i].has_value()) return false;
    if (parameters[i].has_value() && !sources_[i]->is_current(*parameters[i])) return false;
  }
  return true;
}

int64_t Encoder::nbytes() const {
  int64_t total = 0;
  auto add = [&](const at::Tensor& t) { total += t.defined() ? static_cast<int64_t>(t.nbytes()) : 0; };
  for (const Layer& layer : layers_) {
    for (const PackedWeight* w : {&layer.qkv, &layer.projection, &layer.up, &layer.down}) {
      for (const at::Tensor* t : {&w->data, &w->scale, &w->sum}) add(*t);
    }
    for (const at::Tensor* t : {&layer.qkv_bias, &layer.projection_bias, &layer.up_bias, &layer.down_bias}) add(*t);
    for (const Norm* norm : {&layer.attention_norm, &layer.output_norm}) add(norm->weight), add(norm->bias);
  }
  return total;
}

// Sequences that stand beside each other, and their tokens.
struct Encoder::Share {
  int64_t token, tokens;
  std::vector<AttentionItem> items;
};

// x: the residual stream. middle: of one share, the others hold all tokens. One allocation, cut up.
struct Encoder::Buffers {
  char *x, *qkv, *context, *sum, *middle;
  float *lse, *mean, *rstd;
  int64_t middle_tokens, longest;
};

// One share of all sequences, which all threads work on together, or one for each thread.
std::vector<Encoder::Share> Encoder::shares_of(const std::vector<Sequence>& sequences, int64_t tokens) const {
  const int64_t threads = at::get_num_threads();
  if (threads > 1 && !at::in_parallel_region() && tokens >= threads * kShareTokens) {
    // Multiplications, but for a factor: products of a token, and scores and context of a token for each of its keys.
    const double product = 2.0 * hidden_ + intermediate_;
    auto work = [&](const Sequence& s) { return s.length * (product + s.length); };
    double total = 0;
    for (const Sequence& s : sequences) total += work(s);
    std::vector<Share> shares;
    double done = 0, most = 0;
    for (size_t next = 0; next < sequences.size();) {
      const double limit = total * (shares.size() + 1) / threads, before = done;
      const size_t first = next;
      do done += work(sequences[next++]);
      while (next < sequences.size() && done + work(sequences[next]) / 2 <= limit);
      most = std::max(most, done - before);
      const std::vector<Sequence> own(sequences.begin() + first, sequences.begin() + next);
      const Sequence& last = own.back();
      const int64_t token = own.front().first_token;
      shares.push_back({token, last.first_token + last.length - token, items_of(own, heads_, false)});
    }
    if (most * threads <= total * kShareExcess) return shares;
  }
  return {{0, tokens, items_of(sequences, heads_, true)}};
}

at::Tensor Encoder::forward(const at::Tensor& x_in, const at::Tensor& cu_seqlens, int64_t max_seqlen,
                            const std::optional<at::Tensor>& read) const {
  TORCH_CHECK_VALUE(
      x_in.device().is_cpu() && x_in.dim() == 2 && x_in.size(1) == hidden_ && x_in.scalar_type() == dtype_,
      "encoder: x must be [T, ", hidden_, "] of ", dtype_, " on a CPU, got ", x_in.scalar_type(), " ", x_in.sizes());
  const int64_t tokens = x_in.size(0);
  Buffers b{};
  const std::vector<Sequence> sequences = packed_sequences(cu_seqlens, tokens, max_seqlen, b.longest);
  const std::vector<Share> shares = shares_of(sequences, tokens);
  const at::Tensor rows = read.has_value() ? checked_rows(*read, tokens) : at::Tensor();
  at::Tensor y = at::empty(x_in.sizes(), x_in.options());
  y.copy_(x_in);
  auto floats = [&](int64_t bytes) { return (bytes / 4 + kAlign) / kAlign * kAlign; };
  const int64_t even = kMiddleTokens / static_cast<int64_t>(shares.size());
  b.middle_tokens = shares.size() == 1 ? kMiddleTokens : std::max(kShareMiddle, even);
  for (const Share& share : shares) b.middle_tokens = std::min(b.middle_tokens, std::max<int64_t>(1, share.tokens));
  const int64_t middle = floats(b.middle_tokens * intermediate_ * row_bytes() / hidden_);
  const int64_t sizes[] = {floats(3 * tokens * row_bytes()),
                           floats(tokens * row_bytes()),
                           floats(tokens * row_bytes()),
                           middle * static_cast<int64_t>(shares.size()),
                           floats(heads_ * tokens * 4),
                           floats(tokens * 4),
                           floats(tokens * 4)};
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  const at::Tensor scratch = at::empty({total}, at::kFloat);
  expect_whole_use(scratch);
  float* at = scratch.mutable_data_ptr<float>();
  int next = 0;
  auto take = [&] {
    float* found = at;
    at += sizes[next++];
    return found;
  };
  b.x = static_cast<char*>(y.mutable_data_ptr());
  for (char** buffer : {&b.qkv, &b.context, &b.sum, &b.middle}) *buffer = reinterpret_cast<char*>(take());
  for (float** buffer : {&b.lse, &b.mean, &b.rstd}) *buffer = take();
  const size_t whole = layers_.size() - (rows.defined() ? 1 : 0);
  at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Buffers own = b;
      own.middle += i * middle * 4;
      for (size_t layer = 0; layer < whole; ++layer) {
        attend(layers_[layer], shares[i], own);
        project(layers_[layer], shares[i].token, shares[i].tokens, own);
        feed_forward(layers_[layer], shares[i].token, shares[i].tokens, own);
      }
    }
  });
  if (!rows.defined()) return y;
  // Every token is a key and a value; only past attention does one that nobody reads cease to matter.
  const Layer& last = layers_.back();
  const int64_t count = rows.numel(), row = row_bytes();
  const int64_t* index = rows.const_data_ptr<int64_t>();
  attend(last, {0, tokens, items_at(index, count, sequences, heads_)}, b);
  at::Tensor chosen = at::empty({count, hidden_}, x_in.options());
  char* residual = static_cast<char*>(chosen.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(residual + i * row, b.x + index[i] * row, row);
    // Rows rise, so this overwrites none that is still to be moved; memmove because a row may move onto itself.
    std::memmove(b.context + i * row, b.context + index[i] * row, row);
  }
  b.x = residual;
  project(last, 0, count, b);
  feed_forward(last, 0, count, b);
  return chosen;
}

// To the context of the share's items.
void Encoder::attend(const Layer& layer, const Share& share, const Buffers& b) const {
  const int64_t begin = share.token * row_bytes();
  packed_linear(b.x + begin, share.tokens, layer.qkv, data_or_null(layer.qkv_bias), Activation::kNone,
                b.qkv + 3 * begin);
  AttentionProblem p{};
  p.bfloat16 = dtype_ == at::kBFloat16;
  p.pairs = multiplies_pairs();
  p.heads = heads_;
  p.size = hidden_ / heads_;
  p.qkv = b.qkv;
  p.scale = static_cast<float>(scale_);
  p.inverse_keep = 1.0;
  p.out = b.context;
  p.lse = b.lse;
  run_attention(p, share.items, b.longest);
}

void Encoder::project(const Layer& layer, int64_t token, int64_t tokens, const Buffers& b) const {
  const int64_t begin = token * row_bytes();
  char *x = b.x + begin, *sum = b.sum + begin;
  packed_linear(b.context + begin, tokens, layer.projection, data_or_null(layer.projection_bias), Activation::kNone,
                sum);
  add_norm(layer.attention_norm, sum, x, token, tokens, b);
}

void Encoder::feed_forward(const Layer& layer, int64_t token, int64_t tokens, const Buffers& b) const {
  const int64_t parts = std::max<int64_t>(1, (tokens + b.middle_tokens - 1) / b.middle_tokens);
  char* sum = b.sum + token * row_bytes();
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = token + tokens * part / parts, count = token + tokens * (part + 1) / parts - first;
    char* x = b.x + first * row_bytes();
    packed_linear(x, count, layer.up, data_or_null(layer.up_bias), activation_, b.middle);
    packed_linear(b.middle, count, layer.down, data_or_null(layer.down_bias), Activation::kNone, sum);
    add_norm(layer.output_norm, sum, x, first, count, b);
  }
}

// norm(sum + x) to x, of the rows from `token` on.
void Encoder::add_norm(const Norm& norm, const void* sum, void* x, int64_t token, int64_t rows,
                       const Buffers& b) const {
  const Storage storage = dtype_ == at::kFloat ? Storage::kFloat : Storage::kBFloat16;
  const AddNorm work{hidden_,
                     sum,
                     nullptr,
                     x,
                     norm.weight.const_data_ptr<float>(),
                     norm.bias.const_data_ptr<float>(),
                     norm.eps,
                     {0, 0, 0, 0, 1.0f},
                     x,  // the residual itself: a row is read before it is written
                     b.mean + token,
                     b.rstd + token};
  at::parallel_for(0, rows, kRowGrain,
                   [&](int64_t begin, int64_t end) { norm_kernels().add_norm(storage, storage, work, begin, end); });
}

}  // namespace bertfast
