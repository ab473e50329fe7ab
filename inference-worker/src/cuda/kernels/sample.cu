// The next token of each row of logits, as `Sampling::pick` picks it, and the step from it to the next input.

// How a row is sampled: 32 bytes, in this order. temperature 0 (or top_k 1) picks the likeliest.
struct Sampling {
    float temperature;
    u32 top_k;
    float top_p;
    float min_p;
    u64 seed;
    // Not used.
    u64 reserved;
};

// logits [rows, vocabulary] f32; samplings [rows]; positions [rows]: the draw of a row is for position
// positions[row] + ahead (modulo 2^32). allowed [rows, ceil(vocabulary / 32)] (optional): only tokens whose bit (1 << id % 32) is set.
// tokens [rows]: the picked ids; NONE where no logit is a number.
// Grid (rows), block 1024.
KERNEL(sample, 1024, 1, const float* logits, const Sampling* samplings, const u32* positions, u32 ahead, const u32* allowed,
       u32* tokens, u32 vocabulary);

// Only the likeliest, ties to the lower id, for rows that all want that. Arguments as above. Grid (rows), block 1024.
KERNEL(argmax, 1024, 1, const float* logits, const u32* allowed, u32* tokens, u32 vocabulary);

// Prepares the next decode step of each row: the picked token becomes the input, position and context grow by one, the
// slot follows from the block table. A row whose context is 0 stays as it is. NONE as a token becomes input 0.
// A position past the table, or a table entry of NONE, makes the slot NONE.
//
// picked, inputs, positions, slots, contexts [count]; tables [count, table_stride].
// Grid (ceil(count / 128)), block 128.
KERNEL(advance, 128, 1, const u32* picked, u32* inputs, u32* positions, u32* slots, u32* contexts, const u32* tables,
       u32 table_stride, u32 count);
