//! The host names of the three APIs: which service, region and variant a name stands for.
//!
//! Written from AWS's lists of endpoints, apart from the SDK's rules, so that the two judge each other.

use super::Service;
use super::region::{PARTITIONS, Partition, is_region, partition};

/// A host name of AWS, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiHost {
    /// `api.ecr-fips.us-gov-west-1.amazonaws.com`.
    pub name: String,
    pub service: Service,
    pub region: String,
    pub variant: Variant,
}

/// Which of an API's hosts in a region it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    Standard,
    Fips,
    DualStack,
    DualStackFips,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::Standard, Variant::Fips, Variant::DualStack, Variant::DualStackFips];

    pub fn of(fips: bool, dual_stack: bool) -> Self {
        match (fips, dual_stack) {
            (false, false) => Variant::Standard,
            (true, false) => Variant::Fips,
            (false, true) => Variant::DualStack,
            (true, true) => Variant::DualStackFips,
        }
    }

    pub fn is_fips(self) -> bool {
        matches!(self, Variant::Fips | Variant::DualStackFips)
    }

    pub fn is_dual_stack(self) -> bool {
        matches!(self, Variant::DualStack | Variant::DualStackFips)
    }
}

impl ApiHost {
    /// Takes a host name apart; `None` for one that AWS does not have.
    pub fn parse(name: &str) -> Option<Self> {
        if name == "sts.amazonaws.com" {
            return Some(host(name, Service::Sts, "us-east-1", Variant::Standard));
        }
        PARTITIONS.iter().find_map(|partition| {
            let plain = in_domain(name, partition, partition.suffix).and_then(|(api, region)| plain(api, region));
            let dual = in_domain(name, partition, partition.dual_stack_suffix);
            plain
                .or_else(|| dual.and_then(|(api, region)| dual_stack(api, region)))
                .map(|(service, region, fips, is_dual)| host(name, service, region, Variant::of(fips, is_dual)))
        })
    }
}

type Parts<'a> = (Service, &'a str, bool, bool);

fn plain<'a>(api: &str, region: &'a str) -> Option<Parts<'a>> {
    let (service, fips) = match api {
        // In GovCloud the plain host of STS is its FIPS host.
        "sts" => (Service::Sts, region.starts_with("us-gov-")),
        "sts-fips" => (Service::Sts, true),
        "api.ecr" | "ecr" => (Service::Ecr, false),
        "api.ecr-fips" | "ecr-fips" => (Service::Ecr, true),
        "api.ecr-public" if has_ecr_public(region) => (Service::EcrPublic, false),
        _ => return None,
    };
    Some((service, region, fips, false))
}

fn dual_stack<'a>(api: &str, region: &'a str) -> Option<Parts<'a>> {
    let (service, fips) = match api {
        "sts" => (Service::Sts, false),
        "sts-fips" => (Service::Sts, true),
        "ecr" => (Service::Ecr, false),
        "ecr-fips" => (Service::Ecr, true),
        "ecr-public" if has_ecr_public(region) => (Service::EcrPublic, false),
        _ => return None,
    };
    Some((service, region, fips, true))
}

/// ECR Public has no host elsewhere, and none for FIPS anywhere.
fn has_ecr_public(region: &str) -> bool {
    ["us-east-1", "us-west-2"].contains(&region)
}

/// `api.ecr` and `eu-west-1` of `api.ecr.eu-west-1.amazonaws.com`, if the region is of this partition.
fn in_domain<'a>(name: &'a str, of: &Partition, suffix: &str) -> Option<(&'a str, &'a str)> {
    let (api, region) = name.strip_suffix(suffix)?.strip_suffix('.')?.rsplit_once('.')?;
    (is_region(region) && partition(region) == *of).then_some((api, region))
}

fn host(name: &str, service: Service, region: &str, variant: Variant) -> ApiHost {
    ApiHost { name: name.to_owned(), service, region: region.to_owned(), variant }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_for_one_api_in_one_region() {
        use Service::{Ecr, EcrPublic, Sts};
        use Variant::{DualStack, DualStackFips, Fips, Standard};
        let cases = [
            ("api.ecr.eu-west-1.amazonaws.com", Ecr, "eu-west-1", Standard),
            ("ecr.eu-west-1.amazonaws.com", Ecr, "eu-west-1", Standard),
            ("api.ecr-fips.us-gov-west-1.amazonaws.com", Ecr, "us-gov-west-1", Fips),
            ("ecr-fips.us-east-2.amazonaws.com", Ecr, "us-east-2", Fips),
            ("ecr.eu-west-1.api.aws", Ecr, "eu-west-1", DualStack),
            ("ecr-fips.us-gov-east-1.api.aws", Ecr, "us-gov-east-1", DualStackFips),
            ("api.ecr.cn-north-1.amazonaws.com.cn", Ecr, "cn-north-1", Standard),
            ("ecr.cn-north-1.api.amazonwebservices.com.cn", Ecr, "cn-north-1", DualStack),
            ("api.ecr.us-iso-east-1.c2s.ic.gov", Ecr, "us-iso-east-1", Standard),
            ("ecr.us-iso-east-1.api.aws.ic.gov", Ecr, "us-iso-east-1", DualStack),
            ("api.ecr.us-isob-east-1.sc2s.sgov.gov", Ecr, "us-isob-east-1", Standard),
            ("api.ecr.eu-isoe-west-1.cloud.adc-e.uk", Ecr, "eu-isoe-west-1", Standard),
            ("api.ecr.us-isof-south-1.csp.hci.ic.gov", Ecr, "us-isof-south-1", Standard),
            ("api.ecr.eusc-de-east-1.amazonaws.eu", Ecr, "eusc-de-east-1", Standard),
            ("api.ecr-public.us-east-1.amazonaws.com", EcrPublic, "us-east-1", Standard),
            ("ecr-public.us-east-1.api.aws", EcrPublic, "us-east-1", DualStack),
            ("sts.amazonaws.com", Sts, "us-east-1", Standard),
            ("sts.eu-west-1.amazonaws.com", Sts, "eu-west-1", Standard),
            ("sts-fips.us-west-2.amazonaws.com", Sts, "us-west-2", Fips),
            ("sts.us-gov-west-1.amazonaws.com", Sts, "us-gov-west-1", Fips),
            ("sts.cn-north-1.amazonaws.com.cn", Sts, "cn-north-1", Standard),
            ("sts.eu-west-1.api.aws", Sts, "eu-west-1", DualStack),
        ];
        for (name, service, region, variant) in cases {
            assert_eq!(ApiHost::parse(name), Some(host(name, service, region, variant)), "{name}");
        }
    }

    #[test]
    fn other_names_stand_for_none() {
        for name in [
            "",
            "amazonaws.com",
            "s3.eu-west-1.amazonaws.com",
            "api.ecr.eu-west-1.amazonaws.com.evil.example",
            "api.ecr.eu-west-1.amazonaws.com.",
            "evil.api.ecr.eu-west-1.amazonaws.com",
            "api.ecr.cn-north-1.amazonaws.com",
            "api.ecr.eu-west-1.amazonaws.com.cn",
            "api.ecr.eu-west-1.api.aws",
            "api.ecr-public-fips.us-east-1.amazonaws.com",
            "api.ecr-public.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        ] {
            assert_eq!(ApiHost::parse(name), None, "{name}");
        }
    }
}
