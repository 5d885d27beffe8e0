/* The outputs of a warpgroup: 64 rows of so many tokens. Those of 16 bits are turned in shared memory, 16 tokens at a time, so
   that eight lanes write a token's 64 rows, a line of 128 bytes. */

#define LINE 128

/* Bytes in which a warpgroup turns outputs and keeps scales, of two times 16 tokens and of two tiles: some of its warps may
   be at the next ones already. */
#define TURNED (16 * LINE)
#define SCALES (TOKENS * 4)
#define WARPGROUP_OUTPUTS (2 * (TURNED + SCALES))

__device__ __forceinline__ void meet_warpgroup()
{
    asm volatile("bar.sync %0, 128;" ::"r"(2 + threadIdx.x / 128) : "memory");
}

template <u32 COUNT> struct Epilogue {
    const Arguments &it;
    u32 base; /* of WARPGROUP_OUTPUTS bytes */
    u32 row, token; /* the first ones */
    u32 scales; /* where those of the tokens lie */
    TwoRows rows;

    /* Before the products of a tile, so that nothing is waited for after them. odd: every other tile. */
    __device__ __forceinline__ Epilogue(const Arguments &it, u32 base, u32 row, u32 token, bool odd)
        : it(it), base(base), row(row), token(token), scales(base + 2 * TURNED + odd * SCALES),
          rows(it, row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4)
    {
        u32 thread = threadIdx.x % 128;
        if (thread < COUNT / 4)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(scales + thread * 16),
                         "l"(it.scale + token + 4 * thread) : "memory");
        commit_copies();
    }

    __device__ __forceinline__ void write(const Sum *sums) const
    {
        wait_copies<0>();
        meet_warpgroup();
        if (X == 2)
            write_single(sums);
        else
            write_lines(sums);
    }

    __device__ __forceinline__ void write_single(const Sum *sums) const
    {
        u32 lane = threadIdx.x % 32, first = row + threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
        for (u32 i = 0; i < COUNT / 16; i++)
            sixteen(sums, i).write(it, first, token + 16 * i + lane % 4 * 2);
    }

    __device__ __forceinline__ void write_lines(const Sum *sums) const
    {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        /* A lane stores 8 rows of a token: of matrix lane / 8, token lane % 8. A line's eight parts are swapped by the
           token, so that eight lanes use all banks. */
        u32 store = base + (lane / 16 * 8 + lane % 8) * LINE + (2 * warp + lane / 8 % 2 ^ lane % 8) * 16;
        u32 taken = threadIdx.x % 128 / 8, part = threadIdx.x % 8;
        u32 take = base + taken * LINE + (part ^ taken % 8) * 16;
        u32 first = row + part * 8, beyond = first < it.rows ? it.tokens : 0; /* tokens before that are written */
        u16 *to = place_of_outputs(it, first, token + taken);
        u32 words[2][4];
        sixteen(sums, 0).narrow_to(words[0]);
#pragma unroll
        for (u32 i = 0; i < COUNT / 16; i++, to += 16 * (u64)it.rows) {
            u32 buffer = i % 2 * TURNED;
            turn(store + buffer, words[i % 2]);
            if (i + 1 < COUNT / 16) /* meanwhile */
                sixteen(sums, i + 1).narrow_to(words[(i + 1) % 2]);
            meet_warpgroup();
            Four eight = load(take + buffer);
            if (token + 16 * i + taken < beyond)
                write_eight(it, to, eight, first);
        }
    }

    /* The lane's outputs of 16 tokens of the tile. */
    __device__ __forceinline__ Sixteen sixteen(const Sum *sums, u32 number) const
    {
        float2 scale[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(scale[i].x), "=f"(scale[i].y)
                         : "r"(scales + (16 * number + 8 * i + threadIdx.x % 4 * 2) * 4));
        return Sixteen(sums + 8 * number, scale, rows);
    }
};
static_assert(SPLITS > 1 || TOKENS / 16 % 2 == 0, "the next tile would turn its outputs where these may still be read");
