//! The ways in which AWS may fail or lie, and what each does to an answer.

use std::time::Duration;

use jiff::SignedDuration;

use super::error::ApiError;
use super::tokens::TokenForm;
use super::{Service, tokens};

/// Something that goes wrong with a call. Those about tokens concern the two registries; STS takes them as no fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The port is closed until the fault is cleared; it cannot be counted, since no call arrives.
    Refused,
    /// The request is read, then the connection is reset.
    Reset,
    /// The request is read and never answered; the connection is reset when the fault is cleared.
    Hang,
    /// The right answer, one byte in each of these.
    SlowDrip(Duration),
    /// A 400 with one of the two throttling codes that ECR is known to use.
    Throttled(ThrottleCode),
    /// A bare HTTP 429.
    TooManyRequests,
    /// A bare HTTP status: 500, 503.
    Status(u16),
    /// A 200 with a page of a proxy that wants a login.
    Html,
    EmptyBody,
    /// The first half of the right answer.
    Truncated,
    /// A number where text belongs, and text where a time belongs.
    WrongTypes,
    Missing(Field),
    /// `authorizationData: []`; without `authorizationData` for ECR Public, whose one is no list.
    EmptyList,
    /// Two good tokens, the second for another account's registry.
    TwoEntries,
    NoColon,
    /// A good token whose password has colons: it must be split at the first.
    SeveralColons,
    NotBase64,
    NotUtf8,
    UserNotAws,
    EmptyPassword,
    /// A good token of 1 MiB.
    HugeToken,
    /// A good answer in 10 MiB.
    HugeBody,
    /// A token, or a session, that has expired a minute ago.
    Expired,
    /// A token, or a session, that expires this soon.
    NearExpiry(Duration),
    /// A token that claims ten years.
    FarExpiry,
    AccessDenied,
    InvalidIdentityToken,
    ExpiredToken,
    /// The service's own 500: `ServerException`.
    ServerException,
    /// Any other error answer.
    Error {
        status: u16,
        code: String,
        message: String,
    },
}

/// The two names for the same thing; the SDK's retries know only the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ThrottleCode {
    ThrottlingException,
    ThrottleException,
}

/// A field of an answer. In STS's answers `Data` are the credentials, `Token` is the session token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field {
    Data,
    Token,
    Expiry,
    ProxyEndpoint,
}

/// How an answer reaches the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Delivery {
    #[default]
    Whole,
    Drip(Duration),
    Reset,
    Hang,
}

/// What is wrong with an answer's body.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum BodyForm {
    #[default]
    Good,
    Html,
    Empty,
    Truncated,
    WrongTypes,
    Missing(Field),
    EmptyList,
    TwoEntries,
    /// Padded to this many bytes.
    Padded(usize),
}

/// A fault, taken apart by where it takes effect.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect {
    pub(super) delivery: Delivery,
    pub(super) error: Option<ApiError>,
    /// A status without any of AWS's own error bodies.
    pub(super) bare_status: Option<u16>,
    pub(super) body: BodyForm,
    pub(super) token: TokenForm,
    pub(super) claimed_life: Option<SignedDuration>,
}

impl Fault {
    /// The name in the call log, without secrets and parameters.
    pub(super) fn name(&self) -> String {
        let debug = format!("{self:?}");
        debug.split([' ', '{']).next().unwrap_or_default().to_owned()
    }

    pub(super) fn effect(&self, service: Service) -> Effect {
        let base = Effect::default();
        let body = |body| Effect { body, ..Effect::default() };
        let token = |token| Effect { token, ..Effect::default() };
        let life = |life| Effect { claimed_life: Some(life), ..Effect::default() };
        let delivery = |delivery| Effect { delivery, ..Effect::default() };
        match self {
            // An open connection that meets a closed port's fault is as good as reset.
            Fault::Refused | Fault::Reset => delivery(Delivery::Reset),
            Fault::Hang => delivery(Delivery::Hang),
            Fault::SlowDrip(pause) => delivery(Delivery::Drip(*pause)),
            Fault::TooManyRequests => Effect { bare_status: Some(429), ..base },
            Fault::Status(status) => Effect { bare_status: Some(*status), ..base },
            Fault::Html => body(BodyForm::Html),
            Fault::EmptyBody => body(BodyForm::Empty),
            Fault::Truncated => body(BodyForm::Truncated),
            Fault::WrongTypes => body(BodyForm::WrongTypes),
            Fault::Missing(field) => body(BodyForm::Missing(*field)),
            Fault::EmptyList => body(BodyForm::EmptyList),
            Fault::TwoEntries => body(BodyForm::TwoEntries),
            Fault::HugeBody => body(BodyForm::Padded(10 << 20)),
            Fault::NoColon => token(TokenForm::NoColon),
            Fault::SeveralColons => token(TokenForm::SeveralColons),
            Fault::NotBase64 => token(TokenForm::NotBase64),
            Fault::NotUtf8 => token(TokenForm::NotUtf8),
            Fault::UserNotAws => token(TokenForm::OtherUser),
            Fault::EmptyPassword => token(TokenForm::EmptyPassword),
            // Base64 adds a third, so that three quarters of it make a token of 1 MiB.
            Fault::HugeToken => token(tokens::TokenForm::Sized(3 << 18)),
            Fault::Expired => life(SignedDuration::from_mins(-1)),
            Fault::NearExpiry(left) => life(SignedDuration::try_from(*left).unwrap_or(SignedDuration::ZERO)),
            Fault::FarExpiry => life(SignedDuration::from_hours(24 * 3652)),
            other => Effect { error: Some(other.error(service)), ..base },
        }
    }

    fn error(&self, service: Service) -> ApiError {
        match self {
            Fault::Throttled(code) => ApiError::bad(&format!("{code:?}"), "Rate exceeded"),
            Fault::AccessDenied => ApiError::denied(service, "User is not authorized to perform this action"),
            Fault::InvalidIdentityToken => ApiError::bad("InvalidIdentityToken", "Couldn't retrieve verification key"),
            Fault::ExpiredToken => {
                ApiError::bad("ExpiredTokenException", "The security token included in the request is expired")
            }
            Fault::Error { status, code, message } => ApiError::new(*status, code, message),
            _ => ApiError::new(500, "ServerException", "Internal service error"),
        }
    }
}
