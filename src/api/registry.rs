//! Names of AWS things as types that cannot hold anything else: account, region, host.

use super::HostVariant;
use crate::named::shown_as_text;

/// The host of Amazon ECR Public.
pub const PUBLIC_HOST: &str = "public.ecr.aws";

/// The host of Amazon ECR Public with IPv4 and IPv6 (ECR Public user guide, "Making requests over IPv6").
pub const PUBLIC_DUAL_STACK_HOST: &str = "ecr-public.aws.com";

/// The only region with an ECR Public API that issues tokens (AWS General Reference, "Amazon ECR Public endpoints").
pub const PUBLIC_REGION: &str = "us-east-1";

/// Why a text is not the name it should be. The message says what is expected and may be shown to users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not 12 digits.
    #[error("{0:?} is not an AWS account id: it has 12 digits")]
    Account(String),
    /// Not of the form of an AWS region code.
    #[error("{0:?} is not an AWS region code such as eu-west-1")]
    Region(String),
    /// Not a DNS name with an optional port.
    #[error("{0:?} is not a host name: give a lower case DNS name with an optional port, without scheme or path")]
    Host(String),
    /// The partition has no hosts of this family.
    #[error(
        "region {region} has no {variant:?} registry hosts: remove this host variant, or list the hosts in extraHosts"
    )]
    Variant {
        /// The region asked for.
        region: Region,
        /// The family that its partition lacks.
        variant: HostVariant,
    },
}

/// An AWS account id: 12 digits, or [`AccountId::any`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Box<str>);

/// An AWS region code, e.g. `eu-west-1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Box<str>);

/// A registry host as written into `auths`: a lower case DNS name with an optional port, no scheme, no path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Box<str>);

impl AccountId {
    /// Parses 12 digits.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let valid = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
        if valid { Ok(Self(text.into())) } else { Err(NameError::Account(text.to_owned())) }
    }

    /// `*`: stands for every account, in a host that is reported and not written.
    pub fn any() -> Self {
        Self("*".into())
    }
}

impl Region {
    /// Parses a region code: lower case words and a final number, joined by `-`, as the CRD bounds it. A longer one would
    /// make hosts that are no DNS names.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let words: Vec<&str> = text.split('-').collect();
        let valid = match words.as_slice() {
            [first, middle @ .., last] => {
                !middle.is_empty()
                    && text.len() <= 32
                    && first.len() <= 8
                    && std::iter::once(first).chain(middle).all(|w| is_word(w))
                    && (1..=2).contains(&last.len())
                    && last.bytes().all(|b| b.is_ascii_digit())
            }
            _ => false,
        };
        if valid { Ok(Self(text.into())) } else { Err(NameError::Region(text.to_owned())) }
    }

    /// The region of the ECR Public API.
    pub fn public() -> Self {
        Self(PUBLIC_REGION.into())
    }

    /// The partition as ARNs name it: `aws`, `aws-cn`, `aws-us-gov`, ...
    pub fn partition_name(&self) -> &'static str {
        // Hosts there are as in the commercial partition, roles are not.
        if self.0.starts_with("us-gov-") { "aws-us-gov" } else { self.partition().name }
    }

    fn partition(&self) -> &'static Partition {
        PARTITIONS.iter().find(|p| self.0.starts_with(p.region_prefix)).unwrap_or(&COMMERCIAL)
    }

    /// Whether the region's partition has hosts of a family.
    ///
    /// # Errors
    /// [`NameError::Variant`] where it has none.
    pub fn has_variant(&self, variant: HostVariant) -> Result<(), NameError> {
        self.registry_host(&AccountId("000000000000".into()), variant).map(drop)
    }

    /// The host of an account's private registry in this region.
    ///
    /// # Errors
    /// [`NameError::Variant`] where the region's partition has no such hosts.
    pub fn registry_host(&self, account: &AccountId, variant: HostVariant) -> Result<Host, NameError> {
        let partition = self.partition();
        let (label, suffix) = match variant {
            HostVariant::Standard => ("dkr.ecr", Some(partition.suffix)),
            HostVariant::Fips => ("dkr.ecr-fips", Some(partition.suffix)),
            HostVariant::DualStack => ("dkr-ecr", partition.dual_stack_suffix),
            HostVariant::DualStackFips => ("dkr-ecr-fips", partition.dual_stack_suffix),
        };
        match suffix {
            Some(suffix) => Ok(Host(format!("{account}.{label}.{self}.{suffix}").into())),
            None => Err(NameError::Variant { region: self.clone(), variant }),
        }
    }
}

impl Host {
    /// Parses a DNS name of at least two labels with an optional port.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (name, port) = text.split_once(':').map_or((text, None), |(n, p)| (n, Some(p)));
        // Rust would also read a sign and leading zeros, which other readers of the host do not.
        let port_ok =
            port.is_none_or(|p| p.starts_with(|c: char| ('1'..='9').contains(&c)) && p.parse::<u16>().is_ok());
        let valid = port_ok && text.len() <= 260 && name.contains('.') && name.split('.').all(is_dns_label);
        if valid { Ok(Self(text.into())) } else { Err(NameError::Host(text.to_owned())) }
    }

    /// The host of ECR Public.
    ///
    /// # Errors
    /// [`NameError::Variant`] where it has no such host.
    pub fn public(variant: HostVariant) -> Result<Self, NameError> {
        match variant {
            HostVariant::Standard => Ok(Self(PUBLIC_HOST.into())),
            HostVariant::DualStack => Ok(Self(PUBLIC_DUAL_STACK_HOST.into())),
            HostVariant::Fips | HostVariant::DualStackFips => {
                Err(NameError::Variant { region: Region::public(), variant })
            }
        }
    }

    /// The account in a private registry's host of any family, anchored at both ends; none for other hosts.
    pub fn account(&self) -> Option<AccountId> {
        let (account, rest) = self.0.split_once('.')?;
        let account = AccountId::parse(account).ok()?;
        let rest =
            ["dkr.ecr.", "dkr.ecr-fips.", "dkr-ecr.", "dkr-ecr-fips."].iter().find_map(|p| rest.strip_prefix(p))?;
        let region = Region::parse(rest.split_once('.')?.0).ok()?;
        HostVariant::ALL.iter().any(|v| region.registry_host(&account, *v).is_ok_and(|h| h == *self)).then_some(account)
    }
}

impl HostVariant {
    /// Every family of host names.
    pub const ALL: [Self; 4] = [Self::Standard, Self::Fips, Self::DualStack, Self::DualStackFips];
}

/// A set of regions under one DNS suffix, as in the AWS SDKs' `partitions.json`.
struct Partition {
    name: &'static str,
    region_prefix: &'static str,
    suffix: &'static str,
    dual_stack_suffix: Option<&'static str>,
}

const COMMERCIAL: Partition =
    Partition { name: "aws", region_prefix: "", suffix: "amazonaws.com", dual_stack_suffix: Some("on.aws") };

const PARTITIONS: [Partition; 6] = [
    Partition {
        name: "aws-cn",
        region_prefix: "cn-",
        suffix: "amazonaws.com.cn",
        dual_stack_suffix: Some("on.amazonwebservices.com.cn"),
    },
    Partition {
        name: "aws-eusc",
        region_prefix: "eusc-",
        suffix: "amazonaws.eu",
        dual_stack_suffix: Some("on.amazonwebservices.eu"),
    },
    Partition { name: "aws-iso", region_prefix: "us-iso-", suffix: "c2s.ic.gov", dual_stack_suffix: None },
    Partition { name: "aws-iso-b", region_prefix: "us-isob-", suffix: "sc2s.sgov.gov", dual_stack_suffix: None },
    Partition { name: "aws-iso-e", region_prefix: "eu-isoe-", suffix: "cloud.adc-e.uk", dual_stack_suffix: None },
    Partition { name: "aws-iso-f", region_prefix: "us-isof-", suffix: "csp.hci.ic.gov", dual_stack_suffix: None },
];

fn is_word(text: &str) -> bool {
    (2..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase())
}

fn is_dns_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

shown_as_text!(AccountId, Region, Host);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_follow_the_partition_and_the_variant() {
        use HostVariant::{DualStack, DualStackFips, Fips, Standard};
        let account = AccountId::parse("111122223333").unwrap();
        let table = [
            ("eu-west-1", Standard, Some("111122223333.dkr.ecr.eu-west-1.amazonaws.com")),
            ("us-east-1", Fips, Some("111122223333.dkr.ecr-fips.us-east-1.amazonaws.com")),
            ("us-gov-west-1", Fips, Some("111122223333.dkr.ecr-fips.us-gov-west-1.amazonaws.com")),
            ("us-gov-west-1", DualStackFips, Some("111122223333.dkr-ecr-fips.us-gov-west-1.on.aws")),
            ("eu-west-1", DualStack, Some("111122223333.dkr-ecr.eu-west-1.on.aws")),
            ("cn-north-1", Standard, Some("111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn")),
            ("cn-north-1", DualStack, Some("111122223333.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn")),
            ("eusc-de-east-1", Standard, Some("111122223333.dkr.ecr.eusc-de-east-1.amazonaws.eu")),
            ("eusc-de-east-1", DualStack, Some("111122223333.dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu")),
            ("us-iso-east-1", Standard, Some("111122223333.dkr.ecr.us-iso-east-1.c2s.ic.gov")),
            ("us-isob-east-1", Standard, Some("111122223333.dkr.ecr.us-isob-east-1.sc2s.sgov.gov")),
            ("eu-isoe-west-1", Standard, Some("111122223333.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk")),
            ("us-isof-south-1", Standard, Some("111122223333.dkr.ecr.us-isof-south-1.csp.hci.ic.gov")),
            ("us-iso-east-1", DualStack, None),
        ];
        for (region, variant, expected) in table {
            let host = Region::parse(region).unwrap().registry_host(&account, variant).ok();
            assert_eq!(host.as_ref().map(Host::as_str), expected, "{region} {variant:?}");
            if let Some(host) = host {
                assert_eq!(host.account().as_ref(), Some(&account), "{host} names its account");
            }
        }
    }

    #[test]
    fn names_that_are_not_names_are_refused() {
        for text in ["", "12345678901", "1234567890123", "12345678901a", "１２３４５６７８９０１２"] {
            assert!(AccountId::parse(text).is_err(), "{text:?}");
        }
        for text in
            ["", "eu", "eu-west", "eu-west-1a", "EU-west-1", "eu--1", "-west-1", "eu-west-123", "toolongword-west-1"]
        {
            assert!(Region::parse(text).is_err(), "{text:?}");
        }
        for text in [
            "",
            "a",
            "https://a.b",
            "a.b/c",
            "a..b",
            "-a.b",
            "a.b:",
            "a.b:0",
            "a.b:70000",
            "A.b",
            "a.b:80:80",
            "a.b:+80",
            "a.b:080",
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
        assert!(Host::parse("registry.example.com:5000").is_ok());
    }

    #[test]
    fn only_an_anchored_ecr_host_names_an_account() {
        for text in [
            "111122223333.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "x.111122223333.dkr.ecr.eu-west-1.amazonaws.com",
            "public.ecr.aws",
            "111122223333.dkr.ecr.eu-west-1.amazonaws.com.cn",
            "11112222333.dkr.ecr.eu-west-1.amazonaws.com",
        ] {
            assert_eq!(Host::parse(text).unwrap().account(), None, "{text}");
        }
    }
}
