//! Makes inputs of inputs: seeded, so that a run can be had again.

/// Longest input.
const BYTES_MAX: usize = 64 << 10;
/// Changes made to one input at most.
const CHANGES_MAX: usize = 5;
/// Pieces that parsers stumble over.
const PIECES: [&[u8]; 34] = [
    b"\0",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"/",
    b"//",
    b"..",
    b"%2e",
    b"%2f",
    b"%",
    b"%00",
    b"#",
    b"?",
    b";",
    b",",
    b"\"",
    b"'",
    b"{",
    b"[",
    b"&a *a",
    b"- ",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x80\x80\x01",
    b"\xc0\xaf",
    b"\xe2\x80\xae",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"*",
    b"chunked",
    b"\x00\x00\x00\x00",
];

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
    made: usize,
}

impl Mutator {
    /// Of these, which come first as they are.
    pub(super) fn new(seeds: Vec<Vec<u8>>, seed: u64) -> Self {
        // Zero is the one state that the generator never leaves.
        Self { seeds, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, made: 0 }
    }

    fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound.max(1) as u64).unwrap_or(0)
    }

    /// The next one.
    pub(super) fn next_input(&mut self) -> Vec<u8> {
        let number = self.made;
        self.made += 1;
        if let Some(seed) = self.seeds.get(number) {
            return seed.clone();
        }
        let which = self.below(self.seeds.len());
        let mut input = self.seeds.get(which).cloned().unwrap_or_default();
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change(&mut input);
        }
        input.truncate(BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let length = 1 + self.below(16);
        let end = (at + length).min(input.len());
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b' ', b'/', b'0'][self.below(8)],
            2 => drop(input.drain(at..end)),
            3 => {
                let copied = input[at..end].to_vec();
                let times = 1 + self.below(40);
                input.splice(at..at, copied.repeat(times));
            }
            4 => input.truncate(at),
            5 => {
                let which = self.below(self.seeds.len());
                let other = self.seeds.get(which).cloned().unwrap_or_default();
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => {
                let byte = u8::try_from(self.below(256)).unwrap_or(0);
                input.insert(at, byte);
            }
            _ => {
                let piece = PIECES[self.below(PIECES.len())];
                input.splice(at..at, piece.iter().copied());
            }
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    // Aim: a failing run can be had again, seeds come first, and no input is longer than its bound.
    let make = |seed| {
        let mut mutator = Mutator::new(vec![b"abc".to_vec(), vec![7; BYTES_MAX]], seed);
        (0..500).map(|_| mutator.next_input()).collect::<Vec<_>>()
    };
    let made = make(1);
    assert_eq!(made, make(1));
    assert_ne!(made, make(2));
    assert_eq!(made[0], b"abc");
    assert!(made.iter().all(|input| input.len() <= BYTES_MAX));
}
