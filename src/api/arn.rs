//! The ARN of an IAM role, and the partitions of AWS that ARNs and regions belong to.

use super::registry::Region;
use crate::named::shown_as_text;

/// The ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/NAME`, where the name may have a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn(Box<str>);

/// Not the ARN of an IAM role. The message may be shown to users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the ARN of an IAM role, such as arn:aws:iam::111122223333:role/pull")]
pub struct ArnError(pub String);

impl RoleArn {
    /// Parses an ARN.
    ///
    /// # Errors
    /// [`ArnError`] for anything else than the ARN of a role.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let valid = match parts.as_slice() {
            ["arn", partition, "iam", "", account, resource] => {
                partition.starts_with("aws")
                    && partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
                    && account.len() == 12
                    && account.bytes().all(|b| b.is_ascii_digit())
                    && resource.strip_prefix("role/").is_some_and(is_role_name)
            }
            _ => false,
        };
        if valid { Ok(Self(text.into())) } else { Err(ArnError(text.chars().take(200).collect())) }
    }

    /// `aws`, `aws-cn`, `aws-us-gov`, ...
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// Whether the role is in the partition of a region.
    pub fn is_in_partition_of(&self, region: &Region) -> bool {
        self.partition() == region.partition_name()
    }
}

/// A path and a name as IAM allows them: printable ASCII without spaces, and an end that a name can have.
fn is_role_name(text: &str) -> bool {
    let ends = |b: &u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(b);
    text.len() <= 576 && text.bytes().all(|b| b.is_ascii_graphic()) && text.as_bytes().last().is_some_and(ends)
}

shown_as_text!(RoleArn);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arn_of_a_role_is_one() {
        for text in [
            "arn:aws:iam::111122223333:role/pull",
            "arn:aws-cn:iam::111122223333:role/team/a/pull",
            "arn:aws-us-gov:iam::111122223333:role/Pull+=,.@_-x",
        ] {
            assert_eq!(RoleArn::parse(text).unwrap().as_str(), text);
        }
        for text in [
            "",
            "pull",
            "arn:aws:iam::111122223333:user/pull",
            "arn:aws:iam::11112222333:role/pull",
            "arn:aws:iam:eu-west-1:111122223333:role/pull",
            "arn:aws:sts::111122223333:assumed-role/pull/x",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a/",
            "arn:aws:iam::111122223333:role/a b",
            "arn:aws:iam::111122223333:role/pull:",
            " arn:aws:iam::111122223333:role/pull",
        ] {
            assert!(RoleArn::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_role_belongs_to_the_regions_of_its_partition() {
        let table = [
            ("aws", "eu-west-1"),
            ("aws-cn", "cn-north-1"),
            ("aws-us-gov", "us-gov-west-1"),
            ("aws-eusc", "eusc-de-east-1"),
            ("aws-iso", "us-iso-east-1"),
            ("aws-iso-b", "us-isob-east-1"),
            ("aws-iso-e", "eu-isoe-west-1"),
            ("aws-iso-f", "us-isof-south-1"),
        ];
        for (partition, _) in table {
            let role = RoleArn::parse(&format!("arn:{partition}:iam::111122223333:role/pull")).unwrap();
            for (other, region) in table {
                let region = Region::parse(region).unwrap();
                assert_eq!(role.is_in_partition_of(&region), partition == other, "{partition} {region}");
            }
        }
    }
}
