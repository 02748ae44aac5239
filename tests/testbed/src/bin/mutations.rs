//! Puts each mutation of `tests/mutations` into a copy of the tree and wants the test that it names to fail. The longest part is the
//! build after each change, so that those that unit tests find come first, one after the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use testbed::mutations::{Mutation, all};

/// Breaks the operator on purpose and wants the tests to notice.
#[derive(Parser)]
struct Args {
    /// Only those with one of these words, separated by commas, in their name or class.
    #[arg(default_value = "", value_delimiter = ',')]
    words: Vec<String>,
    /// How many to leave out at the beginning.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// The longest that a test may take.
    #[arg(long, default_value_t = 300)]
    test_seconds: u64,
    /// Builds several that unit tests find at once, each in another file. It takes a tenth of the time; a test may then fail for
    /// another of them.
    #[arg(long)]
    together: bool,
    /// Begins no further one after so many seconds; those that are left count as not tried.
    #[arg(long)]
    seconds: Option<u64>,
}

/// What became of one.
#[derive(Clone)]
enum Fate {
    Caught,
    Missed(String),
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let begun = Instant::now();
    let root = std::env::current_dir()?;
    let tree = Tree::prepare(&root)?;
    let mut mutations = all(&root)?;
    let chosen = |text: &str| args.words.iter().any(|word| text.contains(word));
    mutations.retain(|(class, mutation)| chosen(&mutation.name) || chosen(class));
    // Programs that are built alike stand together.
    mutations.sort_by_key(|(_, mutation)| (mutation.test().0 != "lib", mutation.test().0.to_owned()));
    let number = mutations.len();
    if args.skip == 0 {
        tree.sound(&mutations, args.test_seconds)?;
        println!("the unit tests pass without any: {} s", begun.elapsed().as_secs());
    }
    let batches = batches(mutations.into_iter().skip(args.skip).collect(), args.together);
    let (mut caught, mut tried) = (0, 0);
    for batch in batches {
        if args.seconds.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds) {
            break;
        }
        let started = Instant::now();
        let fates = tree.try_out(&batch, args.test_seconds)?;
        let seconds = started.elapsed().as_secs();
        for ((class, mutation), fate) in batch.iter().zip(fates) {
            tried += 1;
            let name = format!("{}/{number} {class}/{}", args.skip + tried, mutation.name);
            match fate {
                Fate::Caught => {
                    caught += 1;
                    println!("caught     {name} by {}", mutation.by);
                }
                Fate::Missed(why) => println!("NOT CAUGHT {name}: {why}"),
            }
        }
        println!("           {seconds} s");
    }
    let left = number.saturating_sub(args.skip).saturating_sub(tried);
    let seconds = begun.elapsed().as_secs();
    println!("{caught} of {tried} caught, {left} not tried, in {} min {} s", seconds / 60, seconds % 60);
    Ok(if caught == tried && left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What most others depend on: a fault in one of these would make their tests fail too.
const USED_BY_ALL: [&str; 5] =
    ["src/encoding.rs", "src/lenient.rs", "src/plan/auth.rs", "src/plan/schedule.rs", "src/secret/metadata.rs"];

/// Those that are tried at once: one alone, or several that unit tests find, each in a file of its own.
fn batches(mutations: Vec<(String, Mutation)>, together: bool) -> Vec<Vec<(String, Mutation)>> {
    let mut batches: Vec<Vec<(String, Mutation)>> = Vec::new();
    let has = |batch: &[(String, Mutation)], file: &str| {
        batch.iter().flat_map(|(_, mutation)| mutation.edits()).any(|edit| edit.file == file)
    };
    for (class, mutation) in mutations {
        let is_unit = |mutation: &Mutation| {
            mutation.test().0 == "lib" && mutation.edits().all(|edit| !USED_BY_ALL.contains(&&*edit.file))
        };
        let fits = |batch: &&mut Vec<(String, Mutation)>| {
            // One test cannot say which of two it has found.
            let alone = |other: &Mutation| is_unit(other) && other.by != mutation.by;
            let alike = batch.iter().all(|(_, other)| alone(other)) && is_unit(&mutation);
            alike && mutation.edits().all(|edit| !has(batch, &edit.file))
        };
        match batches.iter_mut().find(fits).filter(|_| together) {
            Some(batch) => batch.push((class, mutation)),
            None => batches.push(vec![(class, mutation)]),
        }
    }
    batches
}

/// A copy of the tree that is built on its own.
struct Tree {
    path: PathBuf,
    target: PathBuf,
    logs: PathBuf,
}

impl Tree {
    fn prepare(root: &Path) -> Result<Tree> {
        let base = root.join("target/mutations");
        let tree = Tree { path: base.join("tree"), target: base.join("target"), logs: base.join("logs") };
        fs::create_dir_all(&tree.path)?;
        fs::create_dir_all(&tree.logs)?;
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        let names = String::from_utf8(listed.stdout)?;
        let names: BTreeSet<&str> = names.split('\0').filter(|name| !name.is_empty()).collect();
        for name in &names {
            // One that is deleted and not committed is listed.
            if let Ok(bytes) = fs::read(root.join(name)) {
                tree.write(name, &bytes)?;
            }
        }
        remove_others(&tree.path, &tree.path, &names)?;
        let cache = tree.path.join(".cache");
        if !cache.exists() {
            fs::create_dir_all(root.join(".cache"))?;
            std::os::unix::fs::symlink(root.join(".cache"), cache)?;
        }
        if !tree.target.exists() && root.join("target/debug/deps").exists() {
            // The dependencies are those of the sound operator. A copy, since Cargo changes some of its files in place.
            fs::create_dir_all(&tree.target)?;
            let copied = Command::new("cp").arg("-a").arg(root.join("target/debug")).arg(&tree.target).status();
            if !copied.is_ok_and(|status| status.success()) {
                println!("the dependencies are built once more");
            }
            // A lock that both have would make Cargo wait here for every other build of this tree, and those for this one.
            for lock in [".cargo-lock", ".cargo-build-lock", ".cargo-artifact-lock"] {
                let _ = fs::remove_file(tree.target.join("debug").join(lock));
            }
        }
        Ok(tree)
    }

    /// Writes a file unless it is like that already, so that Cargo builds no more than it must.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, bytes).with_context(|| name.to_owned())
    }

    /// Without any mutation the unit tests that are to fail pass.
    fn sound(&self, mutations: &[(String, Mutation)], seconds: u64) -> Result<()> {
        let tests: BTreeSet<&str> = mutations
            .iter()
            .map(|(_, mutation)| mutation.test())
            .filter(|(program, _)| *program == "lib")
            .map(|(_, test)| test)
            .collect();
        if !tests.is_empty() {
            let built = self.cargo("lib", &["--no-run"], None, 3600)?;
            ensure!(built.status.success(), "the tree does not build: {}", text(&built));
            let filters: Vec<&str> = std::iter::once("--").chain(tests).collect();
            let run = self.cargo("lib", &filters, None, seconds)?;
            ensure!(run.status.success(), "the unit tests fail without any mutation: {}", text(&run));
        }
        Ok(())
    }

    /// Tries some that are in different files, and are found by the same program.
    fn try_out(&self, batch: &[(String, Mutation)], seconds: u64) -> Result<Vec<Fate>> {
        let mut before = Vec::new();
        for edit in batch.iter().flat_map(|(_, mutation)| mutation.edits()) {
            let changed = edit.apply(&self.path)?;
            before.push((edit.file.clone(), fs::read(self.path.join(&edit.file))?));
            self.write(&edit.file, changed.as_bytes())?;
        }
        let fates = self.judge(batch, seconds);
        for (file, bytes) in before.into_iter().rev() {
            self.write(&file, &bytes)?;
        }
        if let Some(fates) = fates? {
            return Ok(fates);
        }
        // One that does not build says nothing of the others.
        let (first, second) = batch.split_at(batch.len() / 2);
        Ok([self.try_out(first, seconds)?, self.try_out(second, seconds)?].concat())
    }

    /// The fates of a batch; none of several that do not build together.
    fn judge(&self, batch: &[(String, Mutation)], seconds: u64) -> Result<Option<Vec<Fate>>> {
        let Some((_, first)) = batch.first() else { return Ok(Some(Vec::new())) };
        let log = self.logs.join(format!("{}.log", first.name));
        let built = self.cargo(first.test().0, &["--no-run"], Some(first), 3600)?;
        fs::write(&log, text(&built))?;
        if !built.status.success() {
            let alone = Fate::Missed(format!("it does not build, see {}", log.display()));
            return Ok((batch.len() == 1).then(|| vec![alone]));
        }
        if batch.len() > 1 {
            let filters: Vec<&str> =
                std::iter::once("--").chain(batch.iter().map(|(_, mutation)| mutation.test().1)).collect();
            let output = text(&self.cargo(first.test().0, &filters, None, seconds)?);
            fs::write(&log, &output)?;
            // One of them may have ended the whole program, or have no end.
            let has_ended = |mutation: &Mutation| {
                let is_it = |line: &str| line.contains(mutation.test().1) && line.contains(" ... ");
                output.lines().any(is_it)
            };
            return batch
                .iter()
                .map(|(_, mutation)| match has_ended(mutation) {
                    true => Ok(told(mutation, &output, &log)),
                    false => self.run(mutation, seconds),
                })
                .collect::<Result<_>>()
                .map(Some);
        }
        Ok(Some(vec![self.run(first, seconds)?]))
    }

    fn run(&self, mutation: &Mutation, seconds: u64) -> Result<Fate> {
        let (program, filter) = mutation.test();
        let log = self.logs.join(format!("{}.log", mutation.name));
        let run = self.cargo(program, &["--", filter], Some(mutation), seconds)?;
        let output = text(&run);
        fs::write(&log, &output)?;
        // A test that has no end is noticed as well.
        Ok(if run.status.code() == Some(124) { Fate::Caught } else { told(mutation, &output, &log) })
    }

    /// Runs `cargo test` for one program; the status is 124 when it has not ended in time.
    fn cargo(&self, program: &str, more: &[&str], mutation: Option<&Mutation>, seconds: u64) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.arg("--kill-after=10").arg(seconds.to_string()).args(["cargo", "test", "--quiet"]);
        match program {
            "lib" => command.args(["--package", "ecr-credential-operator", "--lib"]),
            test => command.args(["--workspace", "--test", test]),
        };
        // One line for each test that fails.
        let (flags, arguments) = more.split_at(more.iter().position(|flag| *flag == "--").unwrap_or(more.len()));
        command.args(flags);
        if !more.contains(&"--no-run") {
            command.args(["--", "--format=pretty"]).args(arguments.iter().skip(1));
        }
        if let Some(mutation) = mutation {
            command.envs(&mutation.env);
        }
        command.env("CARGO_TARGET_DIR", &self.target).env("RUST_BACKTRACE", "0").current_dir(&self.path);
        Ok(command.stdin(Stdio::null()).output()?)
    }
}

/// What the output of a test that has ended says of a mutation.
fn told(mutation: &Mutation, output: &str, log: &Path) -> Fate {
    let (_, filter) = mutation.test();
    let of_it = |end: &str| output.lines().any(|line| line.contains(filter) && line.ends_with(end));
    if !of_it("FAILED") {
        let why = if of_it("... ok") { "the test passes" } else { "another failure" };
        return Fate::Missed(format!("{why}, see {}", log.display()));
    }
    match mutation.says.as_ref().filter(|word| !output.contains(*word)) {
        Some(word) => Fate::Missed(format!("the test fails and does not say {word}, see {}", log.display())),
        None => Fate::Caught,
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Takes away what is in the copy and not in the tree.
fn remove_others(root: &Path, folder: &Path, names: &BTreeSet<&str>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_symlink() || path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        if path.is_dir() {
            remove_others(root, &path, names)?;
        } else if path.strip_prefix(root)?.to_str().is_none_or(|name| !names.contains(name)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
