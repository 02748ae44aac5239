//! The rate at which AWS takes calls.

use testbed::aws::{Rate, Service};

use crate::clients::*;

#[tokio::test]
async fn calls_beyond_the_rate_are_throttled_by_account_and_region() {
    let (aws, issuer, credentials) = good_session().await;
    aws.add_user("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "999988887777");
    let other = aws_credential_types::Credentials::new(
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        None,
        None,
        "testbed",
    );
    // So slow that nothing comes back while the test runs.
    aws.limit_calls(Service::Ecr, Some(Rate { per_second: 0, burst: 3 }));
    let mark = aws.mark();
    for expected in ["OK", "OK", "OK", "ThrottlingException", "ThrottlingException"] {
        assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, expected);
    }
    assert_eq!(ecr_code(&aws, "eu-central-1", &credentials).await, "OK");
    assert_eq!(ecr_code(&aws, "eu-west-1", &other).await, "OK");
    assert_eq!(public_code(&aws, "us-east-1", &credentials).await, "OK");
    let calls = aws.calls_since(mark);
    assert_eq!(calls.iter().filter(|call| call.code == "ThrottlingException").count(), 2);
    assert_eq!(aws.tokens().len(), 6);
    aws.limit_calls(Service::Sts, Some(Rate { per_second: 0, burst: 1 }));
    assert!(session(&aws, &good_token(&issuer)).await.is_ok());
    assert_eq!(session(&aws, &good_token(&issuer)).await.unwrap_err(), "Throttling");
    aws.limit_calls(Service::Ecr, None);
    assert_eq!(ecr_code(&aws, "eu-west-1", &credentials).await, "OK");
}
