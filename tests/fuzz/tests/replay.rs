//! The kept corpus, and so many seeded variations of it, through every target: what `make fuzz` searches for at length.
//! Corpus files named `found-...` are inputs by which something in the product was found wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// How many variations of the corpus a target is given; the seed is fixed, so that they are always the same, on slow machines too.
fn variations(target: &str) -> usize {
    match target {
        // Each takes milliseconds.
        "lists" | "status" | "world" => 1000,
        _ => 4000,
    }
}

/// All corpora together, in bytes: more would be a burden on every clone.
const LARGEST_CORPUS: u64 = 500 * 1024;

macro_rules! targets {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )* };
}

targets! { token grant answer config found names selection plan refresh lists world verdict status }

#[test]
fn every_target_is_replayed_and_every_corpus_is_small() {
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay.rs")).unwrap();
    let listed = source.lines().find(|line| line.starts_with("targets! {")).unwrap();
    let mut bytes = 0;
    for target in &TARGETS {
        assert!(listed.split(' ').any(|name| name == target.name), "{} is not replayed", target.name);
        let files = corpus(target.name);
        assert!(files.len() >= 3, "{} has {} corpus files", target.name, files.len());
        bytes += files.iter().map(|(_, input)| input.len() as u64).sum::<u64>();
    }
    assert!(bytes <= LARGEST_CORPUS, "the corpora have {bytes} bytes: minimise them");
    let folders = std::fs::read_dir(folder("")).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a corpus of no target");
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> =
        files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let target = fuzz::target(name).unwrap();
    let corpus = corpus(name);
    for (file, input) in &corpus {
        attempt(target.run, input, || format!("corpus/{name}/{file}"));
    }
    let inputs: Vec<&[u8]> = corpus.iter().map(|(_, input)| input.as_slice()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for number in 0..variations(name) {
        let input = vary(&mut random, &inputs);
        attempt(target.run, &input, || keep(name, number, &input));
    }
}

fn attempt(run: fn(&[u8]), input: &[u8], named: impl FnOnce() -> String) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        panic!("the input is {}; the panic above says what does not hold", named());
    }
}

/// Writes an input where `make fuzz` keeps its finds, and says where.
fn keep(name: &str, number: usize, input: &[u8]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/found").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("variation-{number}"));
    std::fs::write(&file, input).unwrap();
    file.display().to_string()
}

/// Bytes from nowhere, or something of the corpus with parts changed, cut out, repeated, or taken from another.
fn vary(random: &mut fastrand::Rng, corpus: &[&[u8]]) -> Vec<u8> {
    if random.u8(..) < 64 {
        let length = random.usize(..512);
        return std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    }
    let mut input = random.choice(corpus).unwrap().to_vec();
    for _ in 0..random.usize(1..6) {
        let (from, to) = part(random, input.len());
        match random.u8(..6) {
            0 => input[from..to].iter_mut().take(1).for_each(|byte| *byte = random.u8(..)),
            1 => input[from..to].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
            2 => drop(input.drain(from..to)),
            3 => {
                let repeated = input[from..to].to_vec();
                input.splice(to..to, repeated);
            }
            4 => {
                let other = random.choice(corpus).unwrap();
                let (begin, end) = part(random, other.len());
                input.splice(from..to, other[begin..end].iter().copied());
            }
            _ => input.insert(from, random.u8(..)),
        }
        input.truncate(16 * 1024);
    }
    input
}

fn part(random: &mut fastrand::Rng, length: usize) -> (usize, usize) {
    let (a, b) = (random.usize(..=length), random.usize(..=length));
    (a.min(b), a.max(b))
}
