/* Products of FEW tokens, 1 or 2: every lane has a piece that exists, whatever row it is of.

   32 pieces that follow one another are multiplied at a time. What each gives goes to a slot of its own in shared memory,
   where its group says (weights.cuh); at the end of a chunk, the lane of every row adds up the row's slots, in the same
   order whichever exist, and clears them. Neighbours are of four pieces of columns, so activations are broadcast.

   Activations are made float16 by every warp for itself, a unit at a time, read a round ahead. Those of 16 columns are
   scaled by a power of two, such that the largest has the exponent of 2^14; columns whose codes of 4 bits come out of
   their words 16 times too large are scaled by a sixteenth of it. Stored codes less zero points, exact as subnormal
   numbers, are multiplied and added up in float16 over four products, then in float32.

   Shared memory of a warp: slots [FEW][512] float, at a multiple of their size; halves [FEW][256] float16; back [pieces of
   a unit][8] powers of two, of which FEW are used: a piece's is as far from the first one's as its activations are. */

#if !PLACED
#error "group words do not say where pieces are"
#endif
#define SLOT_BYTES (SLAB * UNIT / PIECE * 4)
#define HALVES_BYTES (UNIT * 2)
#define OWN_BYTES (FEW * (SLOT_BYTES + HALVES_BYTES) + HALVES_BYTES)
#define WAY_BYTES (WARPS * OWN_BYTES + SLOT_BYTES - 1024) /* as far as shared memory is aligned */
#define SLOT 0x7fcu      /* of a group word: where its slot is, */
#define COLUMNS 0x1e0u   /* and its activations */
#define NEXT_PIECE 0x20u /* of the same row */
#define TOGETHER 2       /* times 32 pieces */

__device__ __forceinline__ void store(u32 at, u32 word)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
}

__device__ __forceinline__ void store4(u32 at, const u32 *word)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                 "r"(word[3]) : "memory");
}

/* a * b + c */
__device__ __forceinline__ u32 add2(u32 a, u32 b, u32 c)
{
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

__device__ __forceinline__ float total2(u32 pair) { return half_float((u16)pair) + half_float((u16)(pair >> 16)); }

/* Of two float16. */
__device__ __forceinline__ u32 less2(u32 bits, u32 zeros)
{
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(bits), "r"(zeros));
    return out;
}

/* Stored codes less zero points, 2^-24 of them as float16. */
__device__ __forceinline__ void integers(const u32 *word, u32 group, u32 *out)
{
    u32 zeros = __byte_perm(group, 0, 0x4141);
#if BITS == 8
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = less2(word[i] & 0x00ff00ff, zeros);
        out[2 * i + 1] = less2(__byte_perm(word[i], 0, 0x4341), zeros);
    }
#else
    u32 high = zeros & 0x00f000f0, low = zeros >> 4 & 0x000f000f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        out[4 * i] = less2(word[i] & 0x000f000f, low);
        out[4 * i + 1] = less2(word[i] & 0x00f000f0, high); /* 16 times */
        out[4 * i + 2] = less2(word[i] >> 8 & 0x000f000f, low);
        out[4 * i + 3] = less2(word[i] >> 8 & 0x00f000f0, high);
    }
#endif
}

/* integers * activations, over the columns of a piece. */
__device__ __forceinline__ float dot(const u32 *weight, const u32 *x)
{
    u32 sum[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] = multiply2(weight[4 * i], x[4 * i]);
#pragma unroll
        for (int j = 1; j < 4; j++)
            sum[i] = add2(weight[4 * i + j], x[4 * i + j], sum[i]);
    }
    return total2(sum[0]) + total2(sum[1]);
}

/* The slot and columns of a group's first piece, of which `rank` is the number in the chunk. */
__device__ __forceinline__ u32 place_of(u32 group, u32 rank, const u32 *header)
{
    if (BITS == 4)
        return group & SLOT;
    u32 step = (rank >= header[1]) + (rank >= header[2]) + (rank >= header[3]);
    return (group << 1 & 0x7c) | (group << 3 & 0x600) | step << 7;
}

struct Way {
    u32 slots, halves_at;
    Raw raw[FEW]; /* of the next unit, of this lane's eight columns */

    __device__ __forceinline__ Way(const Arguments &it, const Worker &worker, u8 *own)
    {
        u32 warp = threadIdx.x / 32;
        u32 base = (address(own) + SLOT_BYTES - 1) / SLOT_BYTES * SLOT_BYTES;
        slots = base + warp * (FEW * SLOT_BYTES);
        halves_at = base + WARPS * (FEW * SLOT_BYTES) + warp * ((FEW + 1) * HALVES_BYTES);
        clear();
    }

    __device__ __forceinline__ void clear()
    {
        u32 zeros[4] = {};
#pragma unroll
        for (u32 at = 0; at < FEW * SLOT_BYTES; at += 512)
            store4(slots + at + threadIdx.x % 32 * 16, zeros);
    }

    /* Begin a slab. */
    __device__ __forceinline__ void begin(const Arguments &it, u32 slab) {}

    /* Read the activations of the unit that comes next. */
    __device__ __forceinline__ void prepare(const Arguments &it, u32 unit)
    {
#pragma unroll
        for (int t = 0; t < FEW; t++)
            raw[t] = read_raw(it, t, unit * UNIT + threadIdx.x % 32 * 8);
    }

    /* Write what was read to shared memory. */
    __device__ __forceinline__ void bring()
    {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int t = 0; t < FEW; t++) {
            u32 most = X == 3 ? 0 : largest_of(raw[t]), word[4];
            most = max(most, __shfl_xor_sync(ALL, most, 1));
            u32 exponent = X == 3 ? 127 : multiplier(most);
            float multiply = __uint_as_float(exponent << 23), sixteenth = __uint_as_float((exponent - 4) << 23);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float part = BITS == 4 && i % 2 ? sixteenth : multiply;
                word[i] = halves(number_of(raw[t], 2 * i) * part, number_of(raw[t], 2 * i + 1) * part);
            }
            store4(halves_at + t * HALVES_BYTES + lane * 16, word);
            if (lane % 2 == 0)
                store(halves_at + FEW * HALVES_BYTES + lane * 16 + t * 4, (266 - exponent) << 23); /* 2^12 / multiply */
        }
    }

    /* sums += 2^-12 * a chunk * the activations of its unit, which were brought. */
    __device__ __forceinline__ void multiply(float *sums, u32 chunk, u32 stage, u32 unit)
    {
        u32 header[4];
        load<16>(chunk, header);
        u32 count = (header[0] - PIECES_AT) / PIECE_BYTES, lane = threadIdx.x % 32;
        __syncwarp();
        if (count == 0)
            return;
        lane = min(lane, count - 1);
        u32 pieces = chunk + PIECES_AT + lane * PIECE_BYTES, groups = chunk + header[0] + (lane >> SHARE) * 4;
        u32 behind = lane % (1 << SHARE) * NEXT_PIECE, last = max(count, 32u) - 32;
        for (u32 first = 0; first < count; first += TOGETHER * 32) {
            u32 slot[TOGETHER];
            float value[TOGETHER][FEW];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                u32 start = min(first + i * 32, last), word[WORDS], group; /* the last ones are multiplied twice */
                load<PIECE_BYTES>(pieces + start * PIECE_BYTES, word);
                load<4>(groups + (start >> SHARE) * 4, &group);
                u32 place = place_of(group, start + lane, header) | behind, at = (place & COLUMNS) | halves_at;
                slot[i] = place | slots;
                float scale = __uint_as_float(group & 0xffff0000);
                u32 back[FEW], weight[8];
                load<4 * FEW>(at + FEW * HALVES_BYTES, back);
                integers(word, group, weight);
#pragma unroll
                for (int t = 0; t < FEW; t++) {
                    u32 x[8];
                    load<16>(at + t * HALVES_BYTES, x);
                    load<16>(at + t * HALVES_BYTES + 16, x + 4);
                    value[i][t] = dot(weight, x) * scale * __uint_as_float(back[t]);
                }
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
#pragma unroll
                for (int t = 0; t < FEW; t++)
                    store(slot[i] + t * SLOT_BYTES, __float_as_uint(value[i][t]));
        }
        __syncwarp();
        add_up(sums);
        __syncwarp();
        clear();
    }

    /* The slots of the row of this lane's number; rows that are 8 apart take them in other orders, from other banks. */
    __device__ __forceinline__ void add_up(float *sums) const
    {
        u32 lane = threadIdx.x % 32, row = slots + lane % 8 * 4 + lane / 8 * 512;
#pragma unroll
        for (int t = 0; t < FEW; t++) {
            float sum[4] = {};
#pragma unroll
            for (u32 j = 0; j < 4; j++)
#pragma unroll
                for (u32 step = 0; step < STEPS; step++) {
                    u32 word;
                    load<4>(row + t * SLOT_BYTES + step * 128 + (j ^ lane / 8) * NEXT_PIECE, &word);
                    sum[j] += __uint_as_float(word);
                }
            sums[t] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }

    /* Write a slab's sums. */
    __device__ __forceinline__ void finish(const Arguments &it, const Worker &worker, u32 slab, const float *sums)
    {
        u32 row = slab * SLAB + threadIdx.x % 32;
        if (row >= it.rows)
            return;
        float bias = BIAS == 3 ? 0.0f : read_number<BIAS>(it.bias, row);
#pragma unroll
        for (u32 t = 0; t < FEW; t++) {
            float out = sums[t] * 4096.0f * (X == 3 ? it.scale[t] : 1.0f);
            write_number(it.out, (u64)t * it.rows + row, BIAS == 3 ? out : out + bias);
        }
    }
};
