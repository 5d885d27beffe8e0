/* Activations of the units that a block multiplies next, as float16 in shared memory: [COLUMN_WARPS][TOKENS][PITCH bytes].

   Those in floating point are scaled by a power of two per token and unit, such that the largest of the units until then
   has the exponent of 2^14: exact for bfloat16 from 2^-31 of the largest on. Where that changes, sums are adapted.
   Codes (X 3) stay as they are. A warp makes ITEMS rows of a round, of the same token and column warp in every round. */

#define PITCH (UNIT * 2 + 16) /* every lane of a warp loads from banks of its own */
#define ITEMS ((COLUMN_WARPS * TOKENS + WARPS - 1) / WARPS)
#define ROUND_BYTES (COLUMN_WARPS * TOKENS * PITCH)

struct alignas(X == 3 ? 8 : 16) Raw { u32 word[X == 2 ? 8 : X == 3 ? 2 : 4]; };

/* How sums change from a round to the next, and what makes sums of the activations as they were given. */
struct alignas(8) Scaling { float ratio, back; };

/* Eight that follow one another, zeros beyond the columns. */
__device__ __forceinline__ Raw read_raw(const Arguments &it, u32 token, u32 column)
{
    Raw out = {};
    if (column >= it.columns)
        return out;
    u64 at = (u64)token * it.columns + column;
    if (it.columns % 8 == 0) /* aligned */
        return *(const Raw *)((const u8 *)it.x + at * (X == 2 ? 4 : X == 3 ? 1 : 2));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (column + i >= it.columns)
            continue;
        if (X == 3)
            out.word[i / 4] |= (u32)((const u8 *)it.x)[at + i] << i % 4 * 8;
        else if (X == 2)
            out.word[i * (X == 2)] = ((const u32 *)it.x)[at + i];
        else
            out.word[i / 2 % (sizeof(out) / 4)] |= (u32)((const u16 *)it.x)[at + i] << i % 2 * 16;
    }
    return out;
}

/* The exponent of the largest, biased as in float32. */
__device__ __forceinline__ u32 exponent_of(const Raw &raw)
{
    if (X == 2) {
        u32 most = 0;
#pragma unroll
        for (int i = 0; i < sizeof(raw) / 4; i++)
            most = max(most, raw.word[i] & 0x7fffffff);
        return __reduce_max_sync(ALL, most) >> 23;
    }
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < sizeof(raw) / 4; i++)
        most = __vmaxu2(most, raw.word[i] & 0x7fff7fff);
    most = __reduce_max_sync(ALL, max(most & 0xffff, most >> 16));
    return X == 0 ? most >> 7 : __float_as_uint(half_float((u16)most)) >> 23;
}

__device__ __forceinline__ float number_of(const Raw &raw, int i)
{
    if (X == 3)
        return (float)(signed char)(raw.word[i / 4] >> i % 4 * 8);
    if (X == 2)
        return __uint_as_float(raw.word[i * (X == 2)]);
    u32 word = raw.word[i / 2 % (sizeof(raw) / 4)];
    if (X == 0)
        return __uint_as_float(i % 2 ? word & 0xffff0000 : word << 16);
    return half_float((u16)(word >> i % 2 * 16));
}

/* The rows of a round that this warp makes. */
struct Items {
    Raw raw[ITEMS];
    u32 exponent[ITEMS]; /* of what they are multiplied with, biased */

    __device__ __forceinline__ Items()
    {
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            exponent[i] = X == 3 ? 127 : 253;
    }

    static __device__ __forceinline__ u32 number(int i) { return i * WARPS + threadIdx.x / 32; }
    static __device__ __forceinline__ u32 token(int i) { return number(i) / COLUMN_WARPS; }
    static __device__ __forceinline__ u32 column_warp(int i) { return number(i) % COLUMN_WARPS; }

    /* Of the units from `top` - 1 down, `count` of them. */
    __device__ __forceinline__ void read(const Arguments &it, u32 top, u32 count)
    {
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            if (token(i) < it.tokens && column_warp(i) < count)
                raw[i] = read_raw(it, token(i), (top - 1 - column_warp(i)) * UNIT + threadIdx.x % 32 * 8);
    }

    __device__ __forceinline__ void store(const Arguments &it, u32 count, u8 *x, Scaling *scaling)
    {
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (token(i) >= it.tokens)
                continue;
            u32 row = column_warp(i) * TOKENS + token(i), before = exponent[i];
            if (column_warp(i) < count) {
                if (X != 3)
                    exponent[i] = min(before, 268 - exponent_of(raw[i]));
                float multiply = __uint_as_float(exponent[i] << 23);
                Four four;
#pragma unroll
                for (int j = 0; j < 4; j++)
                    four.word[j] = halves(number_of(raw[i], 2 * j) * multiply, number_of(raw[i], 2 * j + 1) * multiply);
                *(Four *)(x + row * PITCH + threadIdx.x % 32 * 16) = four;
            }
            u32 ratio = (u32)max(127 + (int)exponent[i] - (int)before, 0);
            if (threadIdx.x % 32 == 0)
                scaling[row] = {__uint_as_float(ratio << 23), __uint_as_float((254 - exponent[i]) << 23)};
        }
    }
};
