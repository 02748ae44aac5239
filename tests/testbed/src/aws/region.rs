//! Regions, and the partition of each with its domains.

/// A partition of AWS.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Partition {
    pub(super) name: &'static str,
    /// The domain of its hosts, the registries' among them.
    pub(super) suffix: &'static str,
    /// The domain of its hosts that have IPv4 and IPv6 addresses.
    pub(super) dual_stack_suffix: &'static str,
    prefix: &'static str,
}

/// From the `partitions.json` of the SDKs; the last one takes every other region.
pub(super) const PARTITIONS: [Partition; 8] = [
    part("cn-", "aws-cn", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    part("us-gov-", "aws-us-gov", "amazonaws.com", "api.aws"),
    part("us-iso-", "aws-iso", "c2s.ic.gov", "api.aws.ic.gov"),
    part("us-isob-", "aws-iso-b", "sc2s.sgov.gov", "api.aws.scloud"),
    part("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    part("us-isof-", "aws-iso-f", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    part("eusc-", "aws-eusc", "amazonaws.eu", "api.amazonwebservices.eu"),
    part("", "aws", "amazonaws.com", "api.aws"),
];

const fn part(
    prefix: &'static str,
    name: &'static str,
    suffix: &'static str,
    dual_stack_suffix: &'static str,
) -> Partition {
    Partition { name, suffix, dual_stack_suffix, prefix }
}

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
