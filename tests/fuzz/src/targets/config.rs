//! `.dockerconfigjson`: every good login of a file is read, nothing else is, and the same entries give the same bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::api::registry::Host;
use ecr_credential_operator::secret::docker_config::{DockerConfig, Entries, Quotes, hash_of, parse};
use ecr_credential_operator::token::DockerAuth;
use serde_json::Value;

use crate::material::login;

/// More than this is read once in a while and adds nothing.
const LARGEST: usize = 64 * 1024;

pub fn run(bytes: &[u8]) {
    if bytes.len() > LARGEST {
        return;
    }
    let entries = parse(bytes);
    assert_eq!(plain(&entries), expected(bytes), "read of {}", String::from_utf8_lossy(bytes));
    round_trip(&entries);
    merge(&entries);
    let config = DockerConfig::render(&entries).expect("strings");
    if let (Ok(text), Some(auth)) = (std::str::from_utf8(bytes), entries.values().next()) {
        let quoted = text.contains(auth.expose()) && auth.expose().len() >= 16;
        let json = STANDARD.decode(config.expose_base64()).expect("base64");
        assert!(!quoted || Quotes::of(text).hold_a_login_of(&json), "a login in a message is known");
    }
}

fn plain(entries: &Entries) -> Vec<(String, String)> {
    entries.iter().map(|(host, auth)| (host.to_string(), auth.expose().to_owned())).collect()
}

/// The same, read as a plain JSON value.
fn expected(bytes: &[u8]) -> Vec<(String, String)> {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let Some(auths) = json.get("auths").and_then(Value::as_object) else { return Vec::new() };
    let good = |(host, entry): (&String, &Value)| {
        let auth = entry.get("auth")?.as_str()?;
        let login = Host::parse(host).is_ok() && DockerAuth::parse(auth.to_owned()).is_ok();
        login.then(|| (host.clone(), auth.to_owned()))
    };
    let mut all: Vec<(String, String)> = auths.iter().filter_map(good).collect();
    all.sort();
    all
}

fn round_trip(entries: &Entries) {
    let config = DockerConfig::render(entries).expect("strings");
    let json = STANDARD.decode(config.expose_base64()).expect("base64");
    assert_eq!(config.bytes, json.len());
    assert_eq!(plain(&parse(&json)), plain(entries), "what is written is read back");
    let again = DockerConfig::render(&parse(&json)).expect("strings");
    assert_eq!((&again.hash, again.expose_base64()), (&config.hash, config.expose_base64()));
    let mut hosts: Vec<&str> = entries.keys().map(Host::as_str).collect();
    hosts.reverse();
    assert_eq!(config.hosts, hash_of(hosts), "whatever their order");
    let value: Value = serde_json::from_slice(&json).expect("JSON");
    let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["auths"], "one key and no other");
    let written: Vec<&String> = value["auths"].as_object().expect("an object").keys().collect();
    let sorted: Vec<&str> = entries.keys().map(Host::as_str).collect();
    assert_eq!(written, sorted);
}

/// One host more is one entry more, and changes no other.
fn merge(entries: &Entries) {
    let host = Host::parse("one.more.example").expect("a host");
    let mut more = entries.clone();
    more.insert(host.clone(), login("more"));
    let (before, after) =
        (DockerConfig::render(entries).expect("strings"), DockerConfig::render(&more).expect("strings"));
    assert_eq!(before.hosts == after.hosts, entries.contains_key(&host));
    let mut read = parse(&STANDARD.decode(after.expose_base64()).expect("base64"));
    let added = read.remove(&host).expect("the host that was added");
    assert_eq!(added.expose(), login("more").expose());
    let mut rest = entries.clone();
    rest.remove(&host);
    assert_eq!(plain(&read), plain(&rest));
}
