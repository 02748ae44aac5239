//! Whether an existing Secret has hosts that a desired one lacks. Its metadata has only a hash over its hosts.

use std::collections::HashSet;
use std::sync::OnceLock;

use super::docker_config::hash_of;

/// How many parts are told apart: each one more doubles the number of hashes.
const MOST_PARTS: usize = 8;

/// The hosts of a desired Secret, in the parts of which an existing Secret may have some.
#[derive(Clone, Debug, Default)]
pub struct HostParts {
    parts: Vec<Vec<String>>,
    /// The hashes over some of the parts, or all or none, once they are needed.
    hashes: OnceLock<HashSet<u64>>,
}

impl HostParts {
    /// Takes the hosts of each registry, in the order of the spec.
    pub fn new(mut parts: Vec<Vec<String>>) -> Self {
        if parts.iter().map(Vec::len).sum::<usize>() <= MOST_PARTS {
            parts = parts.into_iter().flatten().map(|host| vec![host]).collect();
        }
        let beyond = parts.len().saturating_sub(MOST_PARTS);
        if beyond > 0 {
            // Registries are mostly added at the end.
            let first = parts.drain(..=beyond).flatten().collect();
            parts.insert(0, first);
        }
        Self { parts, hashes: OnceLock::new() }
    }

    /// Whether the hosts of an existing Secret are among them, by its hash. If that cannot be told, they are not.
    pub fn cover(&self, hosts: u64) -> bool {
        let hashes = || {
            let mut sets: Vec<Vec<&str>> = vec![Vec::new()];
            for part in &self.parts {
                let part: Vec<&str> = part.iter().map(String::as_str).collect();
                let with: Vec<_> = sets.iter().map(|set| [set.as_slice(), &part].concat()).collect();
                sets.extend(with);
            }
            sets.into_iter().map(hash_of).collect()
        };
        self.hashes.get_or_init(hashes).contains(&hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sizes: &[usize]) -> Vec<Vec<String>> {
        let hosts = |(part, size): (usize, &usize)| (0..*size).map(|host| format!("{part}-{host}.example")).collect();
        sizes.iter().enumerate().map(hosts).collect()
    }

    #[test]
    fn hosts_are_covered_that_are_some_of_them() {
        for (what, sizes, some, covered) in [
            ("the first", &[1, 1][..], &["0-0.example"][..], true),
            ("the last", &[1, 1], &["1-0.example"], true),
            ("all", &[1, 1], &["0-0.example", "1-0.example"], true),
            ("none", &[1, 1], &[], true),
            ("one of others", &[1, 1], &["x.example"], false),
            ("one of others beside one of them", &[1, 1], &["0-0.example", "x.example"], false),
            ("some of a registry, of few hosts", &[3, 1], &["0-1.example", "1-0.example"], true),
            ("some of a registry, of many hosts", &[9, 1], &["0-1.example"], false),
            ("a registry of many hosts", &[1, 9, 1], &["0-0.example", "2-0.example"], true),
            ("nothing is desired", &[], &["0-0.example"], false),
        ] {
            assert_eq!(HostParts::new(parts(sizes)).cover(hash_of(some.iter().copied())), covered, "{what}");
        }
    }

    #[test]
    fn of_many_registries_those_that_are_added_at_the_end_are_told_apart() {
        let all = parts(&[2; 50]);
        let desired = HostParts::new(all.clone());
        let covers = |parts: &[Vec<String>]| desired.cover(hash_of(parts.concat().iter().map(String::as_str)));
        assert!(covers(&all) && covers(&all[..49]) && covers(&all[..43]));
        assert!(covers(&[&all[..44], &all[45..47]].concat()));
        assert!(!covers(&all[..42]) && !covers(&all[1..]));
        assert_eq!(desired.hashes.get().map(HashSet::len), Some(256));
    }
}
