//! The steps of one engine on a device: a plan becomes one upload, one list of kernels or its recording, and one small
//! download.
//!
//! Everything that differs from step to step travels in one piece to one place, laid out by the step's shape alone. So a
//! recording, which keeps its addresses, serves every step of its shape: those that only continue answers, padded to one
//! of few counts of rows. A row of padding has a context of nothing and no slot in the cache.
//!
//! Tokens stay where they are picked. An input that the host does not know yet is fetched from there by the step itself;
//! the device does one step after the other, so it is there by then, and the copy to the host was made before the next
//! step picks anew.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    OnDevice, Started,
    decoder::{self, Activations, Cache, Decoder, Frame, block_bytes, tile_tokens},
    device::{Address, Argument, Buffer, Device, Fault, Launch},
};
use crate::{
    architecture::Architecture,
    compute::{Allowed, Compute, Row, Step, Wanted},
    engine::EngineConfig,
    kv::{BLOCK, Blocks},
    prefixes::Prefixes,
    sample::Sampling,
    scheduler::{Chunk, PROMISED, SequenceId},
};

/// Marks what is not there, as the kernels know it.
const NONE: u32 = u32::MAX;
/// Bytes of a whole number.
const INT: usize = size_of::<u32>();
/// Bytes of the description of a draw.
const DRAW: usize = 32;
/// The most rows of a recorded step.
const RECORDED_MAX: usize = 256;
/// The fewest entries in a row of block tables: 256 tokens.
const STRIDE_LEAST: usize = 16;

/// What computes the steps of one engine.
pub struct Steps<D: Device> {
    /// First, because it goes before the device: what is recorded of several devices keeps the way between them.
    recorded: BTreeMap<Shape, Recording<D::Graph>>,
    decoder: Arc<Decoder<D>>,
    activations: Activations<D>,
    cache: Cache<D>,
    inputs: Buffer<D>,
    picked: Buffer<D>,
    /// A bit for each token of each row.
    allowed: Buffer<D>,
    blocks: usize,
    graphs: bool,
    skinny: bool,
    under_way: VecDeque<UnderWay<D::Download>>,
    /// Where the step that was begun last leaves the token of each sequence.
    places: BTreeMap<SequenceId, u32>,
    /// What the step that was finished last gave.
    logits: Vec<Vec<f32>>,
}

/// What a recorded step is known by: rows, and entries in a row of block tables.
type Shape = (usize, usize);

enum Recording<G> {
    /// It was done once: what is loaded at the first use is loaded.
    Tried,
    Done(Frame, G),
    /// The device refused.
    Refused,
}

struct UnderWay<L> {
    wanted: Vec<Wanted>,
    pick: Pick,
    picked: Option<L>,
    /// For each row whose logits are wanted.
    logits: Vec<L>,
}

/// How the tokens of a step are picked.
#[derive(Debug, Clone, Copy)]
struct Pick {
    rows: usize,
    /// All rows want the likeliest.
    greedy: bool,
    draws: Address,
    positions: Address,
}

/// The input of a step as it is uploaded, and where each part of it lies.
#[derive(Debug, Default)]
struct Packed {
    bytes: Vec<u8>,
}

impl Packed {
    /// Appends numbers; returns where they begin.
    fn numbers(&mut self, values: impl IntoIterator<Item = u32>) -> usize {
        let at = self.align();
        self.bytes.extend(values.into_iter().flat_map(u32::to_le_bytes));
        at
    }

    fn draws<'a>(&mut self, draws: impl IntoIterator<Item = &'a Sampling>) -> usize {
        let at = self.align();
        for draw in draws {
            let top_k = u32::try_from(draw.top_k).unwrap_or(u32::MAX);
            self.bytes.extend(draw.temperature.to_le_bytes());
            self.bytes.extend(top_k.to_le_bytes());
            self.bytes.extend(draw.top_p.to_le_bytes());
            self.bytes.extend(draw.min_p.to_le_bytes());
            self.bytes.extend(draw.seed.to_le_bytes());
            self.bytes.extend([0; 8]);
        }
        at
    }

    fn align(&mut self) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        self.bytes.len()
    }
}

impl<D: Device> OnDevice for Decoder<D> {
    fn architecture(&self) -> &Architecture {
        Self::architecture(self)
    }

    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn place(&self) -> String {
        self.device.name()
    }

    fn devices(&self) -> usize {
        1
    }

    fn lost(&self) -> Vec<usize> {
        if self.device.is_lost() { vec![0] } else { Vec::new() }
    }

    fn start(self: Arc<Self>, config: &EngineConfig) -> Result<Started, Fault> {
        let steps = Steps::new(self, config)?;
        Ok(Started { blocks: steps.blocks, computer: Box::new(steps) })
    }
}

/// The rows that so many sequences take at most, padded.
pub(super) fn rows_max(slots: usize) -> usize {
    slots.max(1).next_multiple_of(8)
}

/// The tokens that a step takes at most, padded.
pub(super) fn tokens_max(step_tokens: usize, slots: usize) -> usize {
    padded(step_tokens.max(1)).max(rows_max(slots))
}

/// So few different counts that how to multiply each is asked once.
fn padded(count: usize) -> usize {
    count.next_multiple_of(if count <= RECORDED_MAX { 8 } else { 64 })
}

/// The rows of a step that only continues answers: 1, 2, 4, 8, and so on by eights.
fn bucket(count: usize) -> usize {
    if count <= 8 { count.next_power_of_two() } else { count.next_multiple_of(8) }
}

/// Entries in a row of block tables that hold so many blocks.
fn stride(blocks: usize) -> usize {
    blocks.next_power_of_two().max(STRIDE_LEAST)
}

/// Bytes that the input of a step takes at most.
pub(super) fn input_bytes(a: &Architecture, tokens: usize, rows: usize) -> usize {
    let table = rows * stride(a.window.div_ceil(BLOCK));
    // Every token may be a tile of its own.
    let numbers = 4 * tokens + rows + table + 4 * tokens + 2 * rows;
    numbers * INT + rows * DRAW + 10 * 16
}

/// The memory for the steps of one engine, but for keys and values.
pub(super) struct Prepared<D: Device> {
    decoder: Arc<Decoder<D>>,
    activations: Activations<D>,
    inputs: Buffer<D>,
    picked: Buffer<D>,
    allowed: Buffer<D>,
    blocks: usize,
    graphs: bool,
    skinny: bool,
}

impl<D: Device> Prepared<D> {
    /// Takes it, and works out how many blocks of keys and values fit the part of the rest that they may take.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    pub(super) fn new(decoder: Arc<Decoder<D>>, config: &EngineConfig) -> Result<Self, Fault> {
        let (device, a) = (Arc::clone(&decoder.device), decoder.architecture().clone());
        let rows = rows_max(config.slots);
        let tokens = tokens_max(config.gpu.step_tokens, config.slots);
        let activations = Activations::new(&decoder, tokens, rows)?;
        let inputs = Buffer::zeros(&device, input_bytes(&a, tokens, rows))?;
        let picked = Buffer::zeros(&device, rows * INT)?;
        let allowed = Buffer::zeros(&device, allowed_bytes(&a, rows))?;
        let free = device.memory()?.free;
        let part = (free as f64 * config.gpu.memory_part.clamp(0.0, 1.0)) as usize;
        let most = config.gpu.cache_bytes_max.unwrap_or(usize::MAX).min(part) / block_bytes(&a);
        // More than all places could fill is of no use.
        let blocks = most.min(config.slots.max(1) * a.window.div_ceil(BLOCK)).min(NONE as usize / BLOCK);
        if blocks < 2 {
            return Err(Fault::Memory { wanted: 2 * block_bytes(&a), free: part });
        }
        let (graphs, skinny) = (config.gpu.graphs, config.gpu.skinny);
        Ok(Self { decoder, activations, inputs, picked, allowed, blocks, graphs, skinny })
    }

    /// Blocks that fit.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Takes the memory for so many.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    pub(super) fn with_blocks(self, blocks: usize) -> Result<Steps<D>, Fault> {
        let Self { decoder, activations, inputs, picked, allowed, graphs, skinny, .. } = self;
        let cache = Cache::new(&decoder.device, decoder.architecture(), blocks)?;
        Ok(Steps {
            recorded: BTreeMap::new(),
            decoder,
            activations,
            cache,
            inputs,
            picked,
            allowed,
            blocks,
            graphs,
            skinny,
            under_way: VecDeque::new(),
            places: BTreeMap::new(),
            logits: Vec::new(),
        })
    }
}

impl<D: Device> Steps<D> {
    /// Takes the memory for the steps of one engine, and of what is left the part for keys and values.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    pub fn new(decoder: Arc<Decoder<D>>, config: &EngineConfig) -> Result<Self, Fault> {
        let prepared = Prepared::new(decoder, config)?;
        let blocks = prepared.blocks();
        prepared.with_blocks(blocks)
    }

    /// Blocks of keys and values that there is room for.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Shapes of steps that were recorded.
    pub fn recordings(&self) -> usize {
        self.recorded.values().filter(|recording| matches!(recording, Recording::Done(..))).count()
    }

    fn device(&self) -> &Arc<D> {
        &self.decoder.device
    }

    /// Where the input of a token is known: its value, or where the last step leaves it.
    fn input(&self, chunk: &Chunk, token: u32) -> (u32, u32) {
        if token != PROMISED {
            return (token, NONE);
        }
        let place = self.places.get(&chunk.sequence).expect("only a token of the last step is promised");
        (0, *place)
    }

    /// Lays out the input of a step.
    fn lay_out(&self, chunks: &[Chunk]) -> (Frame, Packed) {
        let a = self.decoder.architecture();
        // Those with one token first: attention takes them together.
        let (singles, runs): (Vec<usize>, Vec<usize>) = (0..chunks.len()).partition(|at| chunks[*at].tokens.len() == 1);
        let order: Vec<usize> = singles.iter().chain(&runs).copied().collect();
        let plain = runs.is_empty() && chunks.iter().all(|chunk| chunk.yields);
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        let (count, rows) = if plain { (bucket(tokens), bucket(tokens)) } else { (padded(tokens), order.len()) };
        let stride = stride(chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(0));

        let (mut sources, mut inputs) = (vec![NONE; count], vec![0; count]);
        let (mut positions, mut slots) = (vec![0; count], vec![NONE; count]);
        let mut tables = vec![NONE; rows * stride];
        let mut contexts = vec![0; if plain { rows } else { singles.len() }];
        let mut tiles: Vec<[u32; 4]> = Vec::new();
        let mut last_rows = vec![0; chunks.len()];
        let mut row = 0;
        for (index, &at) in order.iter().enumerate() {
            let chunk = &chunks[at];
            tables[index * stride..][..chunk.blocks.len()].copy_from_slice(&chunk.blocks);
            for (offset, &token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start + offset;
                (inputs[row + offset], sources[row + offset]) = self.input(chunk, token);
                positions[row + offset] = position as u32;
                slots[row + offset] = chunk.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32;
            }
            if index < singles.len() {
                contexts[index] = chunk.start as u32 + 1;
            } else {
                for offset in (0..chunk.tokens.len()).step_by(tile_tokens(a)) {
                    let length = tile_tokens(a).min(chunk.tokens.len() - offset);
                    let tile = [index, row + offset, length, chunk.start + offset];
                    tiles.push(tile.map(|number| number as u32));
                }
            }
            row += chunk.tokens.len();
            last_rows[at] = row - 1;
        }
        // The longest work begins first, so that none is left over at the end.
        tiles.sort_by_key(|[_, _, length, position]| std::cmp::Reverse(position + length));
        let wanted: Vec<u32> =
            chunks.iter().zip(&last_rows).filter(|(chunk, _)| chunk.yields).map(|(_, row)| *row as u32).collect();
        let outputs = match (plain, wanted.len()) {
            (true, _) => rows,
            (false, 0) => 0,
            (false, wanted) => wanted.next_multiple_of(8),
        };
        // Rows of padding are normed as well, each once, and nobody looks at what comes of it.
        let others = (0..count as u32).filter(|row| !wanted.contains(row));
        let listed: Vec<u32> = wanted.iter().copied().chain(others).take(outputs).collect();

        let mut packed = Packed::default();
        let sources = packed.numbers(sources);
        let inputs = packed.numbers(inputs);
        let positions = packed.numbers(positions);
        let slots = packed.numbers(slots);
        let singles = contexts.len();
        let contexts = packed.numbers(contexts);
        let tables = packed.numbers(tables);
        let tile_count = tiles.len();
        let tile_list = packed.numbers(tiles.into_iter().flatten());
        let listed = packed.numbers(if plain { Vec::new() } else { listed });
        let place = |offset: usize| self.inputs.address() + offset as Address;
        let frame = Frame {
            tokens: count,
            singles,
            tiles: tile_count,
            outputs,
            all: plain,
            skinny: self.skinny,
            table_stride: stride,
            picked: self.picked.address(),
            sources: place(sources),
            inputs: place(inputs),
            positions: place(positions),
            slots: place(slots),
            contexts: place(contexts),
            tables: place(tables),
            tile_list: place(tile_list),
            rows: place(listed),
        };
        (frame, packed)
    }

    /// Asks for what the frame describes, by its recording where there is one.
    fn compute(&mut self, frame: &Frame) -> Result<(), Fault> {
        let shape = (frame.tokens, frame.table_stride);
        if !self.graphs || !frame.all || frame.tokens > RECORDED_MAX {
            return self.decoder.forward(frame, &self.activations, &self.cache);
        }
        match self.recorded.get(&shape) {
            None => {
                self.recorded.insert(shape, Recording::Tried);
                self.decoder.forward(frame, &self.activations, &self.cache)
            }
            Some(Recording::Refused) => self.decoder.forward(frame, &self.activations, &self.cache),
            Some(Recording::Done(recorded, graph)) => {
                assert_eq!(recorded, frame, "a shape has one layout");
                self.device().replay(graph)
            }
            Some(Recording::Tried) => {
                let recording = match self.record(frame) {
                    Ok(graph) => Recording::Done(*frame, graph),
                    Err(lost @ Fault::Lost(_)) => return Err(lost),
                    Err(fault) => {
                        tracing::warn!(%fault, rows = frame.tokens, "a step is not recorded; it is computed kernel by kernel");
                        Recording::Refused
                    }
                };
                self.recorded.insert(shape, recording);
                self.compute(frame)
            }
        }
    }

    fn record(&self, frame: &Frame) -> Result<D::Graph, Fault> {
        let graph = self.device().record().and_then(|()| {
            let asked = self.decoder.forward(frame, &self.activations, &self.cache);
            // It ends in any case: nothing else could be asked of the device before.
            asked.and(self.device().recorded())
        });
        if matches!(graph, Err(Fault::Lost(_))) || self.all_agree(graph.is_ok())? {
            return graph;
        }
        graph.and(Err(Fault::Refused("another rank does not record it".to_owned())))
    }

    /// Whether all ranks say yes; every one asks.
    fn all_agree(&self, yes: bool) -> Result<bool, Fault> {
        let Some(meeting) = self.device().meeting() else { return Ok(yes) };
        let said = meeting.exchange(self.device().rank().index, vec![u8::from(yes)]);
        let said = said.map_err(|parted| Fault::Lost(parted.to_string()))?;
        Ok(said.iter().all(|said| *said == [1]))
    }

    /// Whether the logits are here.
    fn leads(&self) -> bool {
        self.device().rank().leads()
    }

    /// Asks for the tokens of all rows before another step is begun, on all ranks, and for their copy.
    fn pick_on_all(&self, pick: &Pick) -> Result<D::Download, Fault> {
        if self.leads() {
            self.pick(pick, 0)?;
        }
        let bytes = pick.rows * INT;
        self.device().broadcast(self.picked.address(), bytes)?;
        self.device().download(self.picked.address(), bytes)
    }

    /// Asks for the tokens of all rows.
    fn pick(&self, pick: &Pick, allowed: Address) -> Result<(), Fault> {
        let vocabulary = Argument::size(self.decoder.architecture().vocabulary);
        let logits = Argument::Address(self.activations.logits.address());
        let (allowed, tokens) = (Argument::Address(allowed), Argument::Address(self.picked.address()));
        let (draws, positions) = (Argument::Address(pick.draws), Argument::Address(pick.positions));
        let sampled = [logits, draws, positions, Argument::Int(0), allowed, tokens, vocabulary];
        let likeliest = [logits, allowed, tokens, vocabulary];
        let (kernel, arguments) = if pick.greedy { ("argmax", &likeliest[..]) } else { ("sample", &sampled[..]) };
        let grid = [pick.rows as u32, 1, 1];
        self.device().launch(&Launch { kernel, grid, threads: 1_024, shared: 0, arguments })
    }

    /// Waits, on a rank that does not lead, for a step whose end the leader waits for. Nobody here looks at its tokens: what
    /// was picked later than on all ranks, the next step is told.
    fn end_with_the_leader(&self, picked: Option<D::Download>, rows: usize) -> Result<(), Fault> {
        match picked {
            Some(picked) => self.device().finish(picked).map(drop),
            None if rows > 0 => self.device().synchronise(),
            None => Ok(()),
        }
    }

    /// Says which tokens are allowed: those that are asked for, and all of the other rows.
    fn allow(&self, wanted: &[Wanted], allowed: &mut Allowed<'_>) -> Result<(), Fault> {
        let words = self.decoder.architecture().vocabulary.div_ceil(32);
        let row = |(row, wanted): (usize, &Wanted)| match wanted {
            Wanted::Allowed(_) => allowed(row),
            Wanted::Token(_) | Wanted::Logits => None,
        };
        let rows = wanted.iter().enumerate().map(row).map(|row| row.unwrap_or_else(|| vec![u32::MAX; words]));
        let bytes: Vec<u8> = rows.flatten().flat_map(u32::to_le_bytes).collect();
        self.allowed.write(0, &bytes)
    }
}

impl<D: Device> Compute for Steps<D> {
    fn picks(&self) -> bool {
        true
    }

    fn begin(&mut self, step: Step) -> Result<(), Fault> {
        let Step { chunks, wanted } = step;
        let (frame, mut packed) = self.lay_out(&chunks);
        let yielding: Vec<&Chunk> = chunks.iter().filter(|chunk| chunk.yields).collect();
        assert_eq!(yielding.len(), wanted.len(), "something is wanted of every chunk that yields");
        let rows = wanted.len();
        let positions = packed.numbers(yielding.iter().map(|chunk| (chunk.start + chunk.tokens.len()) as u32));
        // Of those that are picked elsewhere the likeliest is as good as any.
        let likeliest = Sampling::default();
        let described: Vec<&Sampling> = wanted
            .iter()
            .map(|wanted| match wanted {
                Wanted::Token(sampling) | Wanted::Allowed(sampling) => sampling,
                Wanted::Logits => &likeliest,
            })
            .collect();
        let greedy = described.iter().all(|sampling| sampling.temperature <= 0.0 || sampling.top_k == 1);
        let draws = packed.draws(described);
        self.inputs.write(0, &packed.bytes)?;
        self.compute(&frame)?;
        let pick = Pick { rows, greedy, draws: self.inputs.at(draws), positions: self.inputs.at(positions) };
        // What is allowed is known when the step is finished.
        let later = wanted.iter().any(|wanted| matches!(wanted, Wanted::Allowed(_)));
        let now = !later && wanted.iter().any(|wanted| matches!(wanted, Wanted::Token(_)));
        let picked = now.then(|| self.pick_on_all(&pick)).transpose()?;
        let row_bytes = self.decoder.architecture().vocabulary * size_of::<f32>();
        let asked = (0..rows).filter(|row| self.leads() && wanted[*row] == Wanted::Logits);
        let logits = asked.map(|row| self.device().download(self.activations.logits.at(row * row_bytes), row_bytes));
        let logits = logits.collect::<Result<_, _>>()?;
        self.places = yielding.iter().map(|chunk| chunk.sequence).zip(0..).collect();
        self.under_way.push_back(UnderWay { wanted, pick, picked, logits });
        Ok(())
    }

    fn finish(&mut self, allowed: &mut Allowed<'_>) -> Result<Vec<Row<'_>>, Fault> {
        let UnderWay { wanted, pick, mut picked, logits } = self.under_way.pop_front().expect("a step was begun");
        if !self.leads() {
            self.end_with_the_leader(picked, pick.rows)?;
            return Ok(Vec::new());
        }
        if wanted.iter().any(|wanted| matches!(wanted, Wanted::Allowed(_))) {
            assert!(self.under_way.is_empty(), "the logits are still those of this step");
            self.allow(&wanted, allowed)?;
            self.pick(&pick, self.allowed.address())?;
            picked = Some(self.device().download(self.picked.address(), pick.rows * INT)?);
        }
        let device = Arc::clone(self.device());
        let picked = picked.map(|picked| device.finish(picked)).transpose()?.unwrap_or_default();
        let picked: Vec<u32> = picked.as_chunks::<INT>().0.iter().map(|token| u32::from_le_bytes(*token)).collect();
        self.logits.clear();
        for row in logits {
            let bytes = device.finish(row)?;
            self.logits.push(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect());
        }
        let mut logits = self.logits.iter();
        let row = |(index, wanted): (usize, &Wanted)| match wanted {
            Wanted::Token(_) | Wanted::Allowed(_) => Row::Token(Some(picked[index]).filter(|token| *token != NONE)),
            Wanted::Logits => Row::Logits(logits.next().expect("one for each that is wanted")),
        };
        Ok(wanted.iter().enumerate().map(row).collect())
    }

    /// The memory of a cache here is taken once, so what was computed of prompts is kept.
    fn rest(&mut self, _: &mut dyn FnMut() -> Vec<u32>) {}

    fn end(self: Box<Self>, _: Blocks) -> Prefixes {
        // What lies on a device is not kept: its memory is what a model gives back.
        Prefixes::empty()
    }
}

impl<D: Device> Drop for Steps<D> {
    fn drop(&mut self) {
        // Copies to the host that nobody waits for end before their memory goes.
        if let Err(fault) = self.device().synchronise() {
            tracing::debug!(%fault, "a device was given up before it was done");
        }
    }
}

/// Bytes of the masks of so many rows.
fn allowed_bytes(a: &Architecture, rows: usize) -> usize {
    rows * a.vocabulary.div_ceil(32) * INT
}

/// Bytes that an engine takes on a device beside its weights, keys and values.
pub(super) fn working_bytes(a: &Architecture, processors: usize, step_tokens: usize, slots: usize) -> usize {
    let (tokens, rows) = (tokens_max(step_tokens, slots), rows_max(slots));
    decoder::Sizes::of(a, processors, tokens, rows).total()
        + input_bytes(a, tokens, rows)
        + rows * INT
        + allowed_bytes(a, rows)
}
