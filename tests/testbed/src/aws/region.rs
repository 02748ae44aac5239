//! Regions, and the partition of each with its registries' domain.

/// A partition of AWS.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Partition {
    pub(super) name: &'static str,
    pub(super) suffix: &'static str,
    prefix: &'static str,
}

/// From the `partitions.json` of the SDKs; the last one takes every other region.
const PARTITIONS: [Partition; 8] = [
    Partition { prefix: "cn-", name: "aws-cn", suffix: "amazonaws.com.cn" },
    Partition { prefix: "us-gov-", name: "aws-us-gov", suffix: "amazonaws.com" },
    Partition { prefix: "us-iso-", name: "aws-iso", suffix: "c2s.ic.gov" },
    Partition { prefix: "us-isob-", name: "aws-iso-b", suffix: "sc2s.sgov.gov" },
    Partition { prefix: "eu-isoe-", name: "aws-iso-e", suffix: "cloud.adc-e.uk" },
    Partition { prefix: "us-isof-", name: "aws-iso-f", suffix: "csp.hci.ic.gov" },
    Partition { prefix: "eusc-", name: "aws-eusc", suffix: "amazonaws.eu" },
    Partition { prefix: "", name: "aws", suffix: "amazonaws.com" },
];

pub(super) fn partition(region: &str) -> Partition {
    let fits = |partition: &&Partition| region.starts_with(partition.prefix);
    PARTITIONS.iter().find(fits).copied().unwrap_or(PARTITIONS[PARTITIONS.len() - 1])
}

/// Whether it has the form of a region: `eu-west-1`, `us-gov-west-1`, `eusc-de-east-1`.
pub(super) fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let Some((number, words)) = parts.split_last() else { return false };
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    number.parse::<u8>().is_ok() && words.len() >= 2 && words.iter().all(is_word)
}
