use sim::{api_server::Kind, operator::Settings, sim::*, workloads};
fn main() {
    if std::env::var("RUST_LOG").is_ok() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
    }
    for w in workloads::all() {
        let t = std::time::Instant::now();
        let mut sim = Sim::new(1, Settings::default());
        sim.play(&w.ground);
        let a = sim.api.sent().len();
        sim.play(&w.steps);
        sim.expect_quiet();
        println!(
            "{} {:?} took {:?} complaints {:?} aws {}",
            w.name,
            sim.api.activity(),
            t.elapsed(),
            sim.complaints,
            sim.aws.calls().len()
        );
        for s in &sim.api.sent()[a..] {
            println!("   {} {} {:?}", s.at, s.summary, s.committed);
        }
        if std::env::var("SNAP").is_ok() {
            for (k, v) in sim::snapshot::snapshot(&sim.api) {
                println!("  {k}: {v}");
            }
        }
        for v in sim::judge::judge(&sim) {
            println!("  VIOLATION {v}");
        }
        println!("  least life {:?}", sim::judge::least_life(&sim));
        let _ = Kind::Secret;
    }
}
