//! The errors that the stand-in answers with, in the two protocols' own forms.

use http::StatusCode;

use super::Service;

/// An error answer of an AWS service.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: String,
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ApiError { status, code: code.to_owned(), message: message.into() }
    }

    /// The caller's mistake, as JSON services report all of them.
    pub(super) fn bad(code: &str, message: impl Into<String>) -> Self {
        ApiError::new(400, code, message)
    }

    /// STS's `AccessDenied` is a 403, that of the JSON services a 400.
    pub(super) fn denied(service: Service, message: impl Into<String>) -> Self {
        match service {
            Service::Sts => ApiError::new(403, "AccessDenied", message),
            _ => ApiError::bad("AccessDeniedException", message),
        }
    }

    /// The answer's content type and body.
    pub(super) fn render(&self, service: Service, request_id: &str) -> (&'static str, String) {
        match service {
            Service::Sts => ("text/xml", self.xml(request_id)),
            _ => ("application/x-amz-json-1.1", self.json()),
        }
    }

    fn json(&self) -> String {
        serde_json::json!({ "__type": self.code, "message": self.message }).to_string()
    }

    fn xml(&self, request_id: &str) -> String {
        let fault = if self.status.is_server_error() { "Receiver" } else { "Sender" };
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>{fault}</Type>\n    \
             <Code>{}</Code>\n    <Message>{}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
            escape(&self.code),
            escape(&self.message)
        )
    }
}

/// Text made safe as the content of an XML element.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
