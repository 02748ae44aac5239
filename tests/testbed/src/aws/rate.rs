//! How many calls AWS takes from one account in one region.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use parking_lot::Mutex;

use super::error::ApiError;
use super::{AwsStandIn, Service};

/// A bucket of `burst` calls that refills with `per_second` of them; real time counts, not the stand-in's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

impl Rate {
    /// What AWS's troubleshooting page says of GetAuthorizationToken: 20 a second with bursts of 200.
    pub const ECR: Rate = Rate { per_second: 20, burst: 200 };
}

#[derive(Default)]
pub(super) struct Rates {
    limits: Mutex<BTreeMap<Service, Rate>>,
    buckets: Mutex<HashMap<(Service, String, String), Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl AwsStandIn {
    /// Answers calls beyond this rate with `ThrottlingException`, by account and region; `None` takes any number.
    pub fn limit_calls(&self, service: Service, rate: Option<Rate>) {
        let mut limits = self.inner.rates.limits.lock();
        match rate {
            Some(rate) => drop(limits.insert(service, rate)),
            None => drop(limits.remove(&service)),
        }
        self.inner.rates.buckets.lock().retain(|(limited, _, _), _| *limited != service);
    }
}

impl Rates {
    pub(super) fn take(&self, service: Service, account: &str, region: &str, now: Instant) -> Result<(), ApiError> {
        let Some(rate) = self.limits.lock().get(&service).copied() else { return Ok(()) };
        let mut buckets = self.buckets.lock();
        let full = Bucket { left: f64::from(rate.burst), at: now };
        let bucket = buckets.entry((service, account.to_owned(), region.to_owned())).or_insert(full);
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(rate.per_second);
        bucket.left = (bucket.left + gained).min(f64::from(rate.burst));
        bucket.at = now;
        if bucket.left < 1.0 {
            // STS has its own name for it.
            let code = if service == Service::Sts { "Throttling" } else { "ThrottlingException" };
            return Err(ApiError::bad(code, "Rate exceeded"));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(rates: &Rates, account: &str, now: Instant) -> usize {
        (0..100).take_while(|_| rates.take(Service::Ecr, account, "eu-west-1", now).is_ok()).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_refills_for_each_account() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(taken(&rates, "a", start), 100, "without a limit any number is taken");
        rates.limits.lock().insert(Service::Ecr, Rate { per_second: 20, burst: 30 });
        assert_eq!(taken(&rates, "a", start), 30);
        assert_eq!(taken(&rates, "b", start), 30);
        assert_eq!(taken(&rates, "a", start + Duration::from_millis(500)), 10);
        assert_eq!(taken(&rates, "a", start + Duration::from_secs(60)), 30);
        assert!(rates.take(Service::Sts, "a", "eu-west-1", start).is_ok());
    }
}
