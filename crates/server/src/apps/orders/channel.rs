//! Notification channels: a log line, a mail, or a signed webhook.

use std::time::Duration;

use bytes::Bytes;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message as Mail, Tokio1Executor};
use reqwest::Url;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Delivery, Error, Message, MessageId, Result};
use tracing::info;

use super::order::{Order, fingerprint};
use super::topology::{CREATED, REJECTED};
use towpath::net::answer::shown;
use towpath::pump::Destination;
use towpath::sink::WebhookSink;

/// The notification channel.
pub enum Channel {
    /// A line of the log.
    Log,
    /// A mail.
    Mail(Box<Mailer>),
    /// A post that carries the event, with the order's own `webhook-id`.
    Webhook(Box<WebhookSink>),
}

/// The notification of a customer about an order.
pub(super) enum News {
    /// Its stock was taken.
    Processed,
    /// It was rejected, for this reason.
    Rejected(String),
}

impl News {
    /// The name of the event, and the start of the idempotency key.
    const fn event(&self) -> &'static str {
        match self {
            Self::Processed => CREATED,
            Self::Rejected(_) => REJECTED,
        }
    }

    fn rejection(&self) -> Option<&str> {
        match self {
            Self::Processed => None,
            Self::Rejected(reason) => Some(reason),
        }
    }

    /// The body of a webhook: the event, and why an order was rejected.
    fn payload(&self, order: &Order) -> Bytes {
        let Self::Rejected(reason) = self else {
            return order.payload();
        };
        let rejected = serde_json::json!({
            "id": order.id, "sku": order.sku, "qty": order.qty, "email": order.email,
            "state": "rejected", "reason": reason,
        });
        rejected.to_string().into()
    }
}

impl Channel {
    /// Its name, as in the configuration and in `notifications:<id>`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Mail(_) => "smtp",
            Self::Webhook(_) => "webhook",
        }
    }

    /// Sends one notification; a repeat carries the same idempotency key.
    pub(super) async fn send(
        &self,
        order: &Order,
        news: &News,
        delivery: &Delivery,
        timeout: Duration,
    ) -> Outcome {
        let key = MessageId::from_bytes(fingerprint(
            format!("{}:{}", news.event(), order.id).as_bytes(),
        ));
        let send = async {
            match self {
                Self::Log => {
                    info!(
                        order = order.id,
                        sku = order.sku,
                        qty = order.qty,
                        rejected = news.rejection(),
                        "notification"
                    );
                    Outcome::Done
                }
                Self::Mail(mailer) => mailer.send(order, news, key).await,
                Self::Webhook(sink) => {
                    let message = Message {
                        id: key,
                        payload: news.payload(order),
                        ..delivery.message.clone()
                    };
                    sink.post(&message).await
                }
            }
        };
        match tokio::time::timeout(timeout, send).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Unavailable {
                cause: Cause::Failed,
                after: None,
                error: format!("not sent within {timeout:?}"),
            },
        }
    }

    /// Where notifications go.
    pub(super) const fn destination(&self) -> Option<&Destination> {
        match self {
            Self::Log => None,
            Self::Mail(mailer) => Some(&mailer.destination),
            Self::Webhook(sink) => Some(sink.receiver()),
        }
    }
}

/// Sends mails by SMTP, over connections that are kept.
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Option<Mailbox>,
    destination: Destination,
}

impl Mailer {
    /// A mailer for `smtp://` or `smtps://` with user and password in the URL, `?tls=required` for STARTTLS.
    /// Orders without an address of their own go to `to`. `destination` makes the server's state of its name.
    ///
    /// # Errors
    /// `Invalid` for a wrong URL or address.
    pub fn new(
        url: &str,
        from: &str,
        to: Option<&str>,
        timeout: Duration,
        destination: impl FnOnce(String) -> Destination,
    ) -> Result<Self> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)
            .map_err(|error| {
                Error::invalid("the URL of the mail server cannot be used").with_source(error)
            })?
            .timeout(Some(timeout))
            .build();
        Ok(Self {
            transport,
            destination: destination(
                Url::parse(url).map_or_else(|_| String::new(), |url| shown(&url)),
            ),
            from: mailbox(from)?,
            to: to.map(mailbox).transpose()?,
        })
    }

    async fn send(&self, order: &Order, news: &News, key: MessageId) -> Outcome {
        let own = order.email.as_deref().map(mailbox).transpose();
        let to = match own {
            Ok(own) => own.or_else(|| self.to.clone()),
            Err(error) => {
                return Outcome::Reject {
                    reason: error.chain(),
                };
            }
        };
        let Some(to) = to else {
            let reason = "the order has no `email`, and `orders.notify.to` is not set".to_owned();
            return Outcome::Reject { reason };
        };
        let Order { id, sku, qty, .. } = order;
        let text = match news {
            News::Processed => format!("Your order {id} was processed: {qty} of {sku}.\r\n"),
            News::Rejected(reason) => {
                format!("Your order {id} was rejected, {qty} of {sku}: {reason}.\r\n")
            }
        };
        let mail = Mail::builder()
            .message_id(Some(format!("<{key}@towpath>")))
            .from(self.from.clone())
            .to(to)
            .subject(format!("Order {}", order.id))
            .header(ContentType::TEXT_PLAIN)
            .body(text);
        let mail = match mail {
            Ok(mail) => mail,
            Err(error) => {
                return Outcome::Reject {
                    reason: format!("no mail can be made of it: {error}"),
                };
            }
        };
        match self.transport.send(mail).await {
            Ok(_) => Outcome::Done,
            Err(error) => self.refused(error),
        }
    }

    /// The meaning of a mail server's answer, or of a missing one.
    ///
    /// 421 closes the connection, and the answers about authentication are about the account that all mails share.
    /// Source: RFC 5321, 4.2.3; RFC 4954, 6.
    fn refused(&self, error: lettre::transport::smtp::Error) -> Outcome {
        let code = error.status().map(u16::from);
        let cause = match code {
            Some(421) => Cause::Failed,
            Some(432 | 454 | 530 | 534 | 535 | 538) => Cause::Unreachable,
            None if error.is_timeout() => Cause::Failed,
            // A feature that the server lacks is needed by every mail; only an address or a text can be refused for one mail alone.
            None if !(error.is_client() && error.to_string().contains("non-ascii")) => {
                Cause::Unreachable
            }
            _ if error.is_permanent() => {
                return Outcome::Reject {
                    reason: format!("refused by the mail server: {error}"),
                };
            }
            _ => {
                return Outcome::Retry {
                    after: None,
                    error: Error::unavailable("not sent").with_source(error).chain(),
                };
            }
        };
        Outcome::Unavailable {
            cause,
            after: None,
            error: Error::unavailable("not sent").with_source(error).chain(),
        }
    }
}

fn mailbox(text: &str) -> Result<Mailbox> {
    text.parse()
        .map_err(|error: lettre::address::AddressError| {
            Error::invalid(format!("invalid mail address `{text}`")).with_source(error)
        })
}

/// Whether a text is the URL of a mail server.
pub(crate) fn is_mail_url(text: &str) -> bool {
    AsyncSmtpTransport::<Tokio1Executor>::from_url(text).is_ok()
}

/// Whether a text is a mail address, with or without a name before it.
pub(crate) fn is_mail_address(text: &str) -> bool {
    mailbox(text).is_ok()
}
