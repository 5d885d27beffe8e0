/* Parts of sums between blocks, and the output: scales and bias. */

#define ABSENT ((int)0x80000000) /* not published: no sum is this, as INT8 sums are smaller, and -0 is published as 0 */
#define SUM_STRIDE (TILE_ROWS + 4) /* of a token: every lane of a warp has a bank of its own */
#define GATHERED (COLUMN_GROUPS == 1 ? 0 : COLUMN_GROUPS * TOKENS * SUM_STRIDE * 4)
#if COLUMN_GROUPS == 1
#define PART (TOKENS * TILE_ROWS) /* sums of a part: [warp][TILES][lane][4], as the tensor cores leave them */
#else
#define PART (it.tokens * TILE_ROWS) /* [tokens][TILE_ROWS] */
#endif

/* The parts of the tile whose first unit is at a place of the order, one for each block that has units of it, and which
   of them is this block's. */
struct Parts {
    u32 own, count, first_block;

    __device__ __forceinline__ Parts(const Arguments &it, u32 start)
    {
        u32 total = it.tiles * it.units;
        u32 last = ((start + it.units) * gridDim.x - 1) / total;
        first_block = ((start + 1) * gridDim.x - 1) / total;
        own = blockIdx.x - first_block;
        count = last - first_block + 1;
    }

    /* Where a part is published. A block begins within one tile at most: that part, which is not the tile's first, has the
       block's own place. First parts have the places behind those: one tile at most begins in a block and ends in another. */
    __device__ __forceinline__ Sum *place(const Arguments &it, u32 part) const
    {
        return it.sums + (first_block + (part == 0 ? gridDim.x : part)) * PART;
    }
};

/* ---- output: (sum * scale) * weight_scale + bias, each operation rounded */

__device__ __forceinline__ float scaled(Sum sum, float scale, float weight_scale, float bias)
{
    float out = __fmul_rn(__fmul_rn((float)sum, scale), weight_scale);
    return BIAS == 3 ? out : __fadd_rn(out, bias);
}

__device__ __forceinline__ float weight_scale_of(const Arguments &it, u32 row)
{
    return row < it.rows ? it.weight_scale[row] : 0.0f;
}

__device__ __forceinline__ float bias_of(const Arguments &it, u32 row)
{
    return BIAS == 3 || row >= it.rows ? 0.0f : read_number<BIAS>(it.bias, row);
}

__device__ __forceinline__ void write(const Arguments &it, u32 token, u32 row, float value)
{
    if (row >= it.rows)
        return;
    u64 at = (u64)token * it.rows + row;
    if (X == 2)
        ((float *)it.out)[at] = value;
    else
        ((u16 *)it.out)[at] = narrow(value);
}

/* ---- parts */

__device__ __forceinline__ void publish(Sum *to, Quad quad)
{
    int bits[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bits[i] = as_bits(quad.sum[i]);
        if (FLOAT && bits[i] == ABSENT)
            bits[i] = 0;
    }
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits[0]), "r"(bits[1]),
                 "r"(bits[2]), "r"(bits[3]) : "memory");
}

/* QUADS sums of all parts, added up in the order of the parts. Waits for them, and leaves their places ABSENT for the
   next product. offset: in a part; step: between the quads. */
template <int QUADS>
__device__ __forceinline__ void collect(const Arguments &it, Quad *out, const Parts &parts, u32 offset, u32 step)
{
    const u32 AT_ONCE = QUADS == 1 ? 4 : 16 / QUADS; /* parts that are read together */
#pragma unroll
    for (int i = 0; i < QUADS; i++)
        out[i] = Quad{{0, 0, 0, 0}};
    for (u32 part = 0; part < parts.count; part += AT_ONCE) {
        int4 more[AT_ONCE][QUADS];
        bool absent;
        do {
            absent = false;
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (u32 i = 0; i < QUADS; i++) {
                    int4 &one = more[j][i];
                    one = make_int4(0, 0, 0, 0);
                    if (part + j < parts.count)
                        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                                     : "=r"(one.x), "=r"(one.y), "=r"(one.z), "=r"(one.w)
                                     : "l"(parts.place(it, part + j) + offset + i * step) : "memory");
                }
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (u32 i = 0; i < QUADS; i++) {
                    int4 one = more[j][i];
                    absent |= one.x == ABSENT || one.y == ABSENT || one.z == ABSENT || one.w == ABSENT;
                }
        } while (absent);
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
            for (u32 i = 0; i < QUADS; i++) {
                int4 one = more[j][i];
                out[i].sum[0] += as_sum(one.x);
                out[i].sum[1] += as_sum(one.y);
                out[i].sum[2] += as_sum(one.z);
                out[i].sum[3] += as_sum(one.w);
                if (part + j < parts.count)
                    *(int4 *)(parts.place(it, part + j) + offset + i * step) = make_int4(ABSENT, ABSENT, ABSENT, ABSENT);
            }
    }
}

#if COLUMN_GROUPS == 1
/* Every warp has rows of its own: its sums go out as they are. */

__device__ __forceinline__ u32 own_word() { return (threadIdx.x / 32 * TILES * 32 + threadIdx.x % 32) * 4; }

__device__ __forceinline__ void finish(const Arguments &it, u32 tile, const Quad *quads)
{
    u32 row = tile * TILE_ROWS + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    float weight_scale[2] = {weight_scale_of(it, row), weight_scale_of(it, row + 8)};
    float bias[2] = {bias_of(it, row), bias_of(it, row + 8)};
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int second = 0; second < 2; second++) {
            u32 token = 8 * j + threadIdx.x % 4 * 2 + second;
            if (token >= it.tokens)
                continue;
            float scale = it.scale[token];
#pragma unroll
            for (int high = 0; high < 2; high++)
                write(it, token, row + 8 * high,
                      scaled(quads[j].sum[2 * high + second], scale, weight_scale[high], bias[high]));
        }
}

__device__ __forceinline__ void deliver(const Arguments &it, u32 tile, Parts parts, const Sum *sums, Sum *)
{
    Quad quads[TILES];
#pragma unroll
    for (int j = 0; j < TILES; j++)
        quads[j] = Quad{{sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]}};
    if (parts.count == 1) {
        finish(it, tile, quads);
        return;
    }
#pragma unroll
    for (int j = 0; j < TILES; j++)
        publish(parts.place(it, parts.own) + own_word() + j * 128, quads[j]);
}

__device__ __forceinline__ void finish_parts(const Arguments &it, u32 tile, Parts parts)
{
    Quad quads[TILES];
    collect<TILES>(it, quads, parts, own_word(), 128);
    finish(it, tile, quads);
}
#else
/* Warpgroups took turns: their sums are added up in shared memory, and go out four rows at a time. */

/* Scales and biases of four rows; read before the sums are waited for. */
struct Rows {
    float weight_scale[4], bias[4];

    __device__ __forceinline__ Rows(const Arguments &it, u32 row)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            weight_scale[i] = weight_scale_of(it, row + i);
            bias[i] = bias_of(it, row + i);
        }
    }
};

__device__ __forceinline__ void finish(const Arguments &it, const Rows &rows, float scale, u32 token, u32 row, Quad quad)
{
    float out[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = scaled(quad.sum[i], scale, rows.weight_scale[i], rows.bias[i]);
    if (X != 2 && it.rows % 4 == 0) {
        if (row < it.rows)
            *(uint2 *)((u16 *)it.out + (u64)token * it.rows + row) =
                make_uint2(narrow(out[0]) | (u32)narrow(out[1]) << 16, narrow(out[2]) | (u32)narrow(out[3]) << 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        write(it, token, row + i, out[i]);
}

__device__ __forceinline__ void deliver(const Arguments &it, u32 tile, Parts parts, const Sum *sums, Sum *gathered)
{
    u32 lane = threadIdx.x % 32, turn = threadIdx.x / 128;
    Sum *own = gathered + turn * TOKENS * SUM_STRIDE + threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        own[(i / 4 * 8 + lane % 4 * 2 + i % 2) * SUM_STRIDE + i / 2 % 2 * 8] = sums[i];
    __syncthreads();
    for (u32 i = threadIdx.x; i < it.tokens * (TILE_ROWS / 4); i += THREADS) {
        u32 token = i / (TILE_ROWS / 4), row = i % (TILE_ROWS / 4) * 4;
        Quad quad = {{0, 0, 0, 0}};
#pragma unroll
        for (int g = 0; g < COLUMN_GROUPS; g++) {
            Quad more = *(Quad *)(gathered + (g * TOKENS + token) * SUM_STRIDE + row);
#pragma unroll
            for (int k = 0; k < 4; k++)
                quad.sum[k] += more.sum[k];
        }
        row += tile * TILE_ROWS;
        if (parts.count == 1)
            finish(it, Rows(it, row), it.scale[token], token, row, quad);
        else
            publish(parts.place(it, parts.own) + i * 4, quad);
    }
    __syncthreads();
}

__device__ __forceinline__ void finish_parts(const Arguments &it, u32 tile, Parts parts)
{
    for (u32 i = threadIdx.x; i < it.tokens * (TILE_ROWS / 4); i += THREADS) {
        u32 token = i / (TILE_ROWS / 4), row = tile * TILE_ROWS + i % (TILE_ROWS / 4) * 4;
        Rows rows(it, row);
        float scale = it.scale[token];
        Quad quad;
        collect<1>(it, &quad, parts, i * 4, 0);
        finish(it, rows, scale, token, row, quad);
    }
}
#endif
