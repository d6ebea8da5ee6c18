// Attention and its gradients with few channels a head, row by row, so that no weights go through memory.
//
// All tensors are float32 and contiguous: query, out and their gradients (heads, rows, CHANNELS); key, value and theirs
// (heads, CHANNELS, tokens), whose tokens lie side by side, for these are what one instruction computes 16 of.

#include <algorithm>
#include <cmath>
#include <vector>

// e to the x for x at most 0, to 2e-7 of itself: 2 to a whole number, and a polynomial of what is left.
static inline float exponential(float x) {
    x = std::max(x, -87.f) * 1.44269504f;
    const float whole = std::nearbyint(x), left = x - whole;
    float power = 1.5403530e-4f;
    power = power * left + 1.3333558e-3f;
    power = power * left + 9.6181291e-3f;
    power = power * left + 5.5504109e-2f;
    power = power * left + 2.4022651e-1f;
    power = power * left + 6.9314718e-1f;
    power = power * left + 1.f;
    union {
        int bits;
        float value;
    } scale = {(static_cast<int>(whole) + 127) << 23};
    return power * scale.value;
}

template <int CHANNELS>
static void attend(const float* query, const float* key, const float* value, float* out, float* log_sums, long heads,
                   long rows, long tokens) {
    std::vector<float> weights(tokens);
    for (long head = 0; head < heads; ++head) {
        const float* k = key + head * CHANNELS * tokens;
        const float* v = value + head * CHANNELS * tokens;
        for (long row = head * rows; row < (head + 1) * rows; ++row) {
            const float* q = query + row * CHANNELS;
            float* w = weights.data();
            float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
            for (long t = 0; t < tokens; ++t) {
                float logit = 0;
                for (int c = 0; c < CHANNELS; ++c) logit += q[c] * k[c * tokens + t];
                w[t] = logit;
                largest = std::max(largest, logit);
            }
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long t = 0; t < tokens; ++t) {
                w[t] = exponential(w[t] - largest);
                sum += w[t];
            }
            for (int c = 0; c < CHANNELS; c += 4) {
                const float *v0 = v + c * tokens, *v1 = v0 + tokens, *v2 = v1 + tokens, *v3 = v2 + tokens;
                float o0 = 0, o1 = 0, o2 = 0, o3 = 0;
#pragma omp simd reduction(+ : o0, o1, o2, o3)
                for (long t = 0; t < tokens; ++t)
                    o0 += w[t] * v0[t], o1 += w[t] * v1[t], o2 += w[t] * v2[t], o3 += w[t] * v3[t];
                float* o = out + row * CHANNELS + c;
                o[0] = o0 / sum, o[1] = o1 / sum, o[2] = o2 / sum, o[3] = o3 / sum;
            }
            log_sums[row] = largest + logf(sum);
        }
    }
}

template <int CHANNELS>
static void gradients(const float* query, const float* key, const float* value, const float* out, const float* log_sums,
                      const float* d_out, float* d_query, float* d_key, float* d_value, long heads, long rows,
                      long tokens) {
    std::vector<float> weights(tokens), d_logits(tokens);
    for (long head = 0; head < heads; ++head) {
        const float* k = key + head * CHANNELS * tokens;
        const float* v = value + head * CHANNELS * tokens;
        float* dk = d_key + head * CHANNELS * tokens;
        float* dv = d_value + head * CHANNELS * tokens;
        for (long row = head * rows; row < (head + 1) * rows; ++row) {
            const float* q = query + row * CHANNELS;
            const float* d = d_out + row * CHANNELS;
            float *w = weights.data(), *dl = d_logits.data();
            const float log_sum = log_sums[row];
            float mean = 0;
            for (int c = 0; c < CHANNELS; ++c) mean += d[c] * out[row * CHANNELS + c];
#pragma omp simd
            for (long t = 0; t < tokens; ++t) {
                float logit = 0, d_weight = 0;
                for (int c = 0; c < CHANNELS; ++c) {
                    logit += q[c] * k[c * tokens + t];
                    d_weight += d[c] * v[c * tokens + t];
                }
                w[t] = exponential(logit - log_sum);
                dl[t] = w[t] * (d_weight - mean);
            }
            for (int c = 0; c < CHANNELS; c += 4) {
                const float *k0 = k + c * tokens, *k1 = k0 + tokens, *k2 = k1 + tokens, *k3 = k2 + tokens;
                float *dk0 = dk + c * tokens, *dk1 = dk0 + tokens, *dk2 = dk1 + tokens, *dk3 = dk2 + tokens;
                float *dv0 = dv + c * tokens, *dv1 = dv0 + tokens, *dv2 = dv1 + tokens, *dv3 = dv2 + tokens;
                const float q0 = q[c], q1 = q[c + 1], q2 = q[c + 2], q3 = q[c + 3];
                const float d0 = d[c], d1 = d[c + 1], d2 = d[c + 2], d3 = d[c + 3];
                float dq0 = 0, dq1 = 0, dq2 = 0, dq3 = 0;
#pragma omp simd reduction(+ : dq0, dq1, dq2, dq3)
                for (long t = 0; t < tokens; ++t) {
                    const float l = dl[t], p = w[t];
                    dq0 += l * k0[t], dq1 += l * k1[t], dq2 += l * k2[t], dq3 += l * k3[t];
                    dk0[t] += l * q0, dk1[t] += l * q1, dk2[t] += l * q2, dk3[t] += l * q3;
                    dv0[t] += p * d0, dv1[t] += p * d1, dv2[t] += p * d2, dv3[t] += p * d3;
                }
                float* dq = d_query + row * CHANNELS + c;
                dq[0] = dq0, dq[1] = dq1, dq[2] = dq2, dq[3] = dq3;
            }
        }
    }
}

#define WITH_CHANNELS(function, ...)                              \
    switch (channels) {                                           \
        case 4: return function<4>(__VA_ARGS__);                  \
        case 8: return function<8>(__VA_ARGS__);                  \
        case 16: return function<16>(__VA_ARGS__);                \
    }

extern "C" void forward(const float* query, const float* key, const float* value, float* out, float* log_sums,
                        long heads, long rows, long tokens, long channels) {
    WITH_CHANNELS(attend, query, key, value, out, log_sums, heads, rows, tokens)
}

extern "C" void backward(const float* query, const float* key, const float* value, const float* out,
                         const float* log_sums, const float* d_out, float* d_query, float* d_key, float* d_value,
                         long heads, long rows, long tokens, long channels) {
    WITH_CHANNELS(gradients, query, key, value, out, log_sums, d_out, d_query, d_key, d_value, heads, rows, tokens)
}
