//! The content of a volume, out and in: `tar` of the component's own image, in an instance of its own. So it works
//! wherever instances run, and what an archive holds is unpacked with no more rights than the application has.

use super::failure::{Failure, exit};
use super::session::Session;
use arco_api::client::{ExecCall, ExecReceiver, ExecSender};
use arco_api::wire::{Channel, ExecControl, Frame};
use arco_model::spec::VolumeSpec;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Bytes of a message.
const MESSAGE: usize = 64 << 10;
/// The code of what a driver cannot do as things are.
const REFUSED: &str = "refused";
/// How long a volume that is asked for may not be there, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of its errors that are shown.
const ERRORS: usize = 400;

/// A volume of a component, or of one place of it.
pub(crate) struct Volume<'a> {
    pub(crate) component: (&'a str, &'a str),
    pub(crate) spec: &'a VolumeSpec,
    pub(crate) place: u32,
}

impl Volume<'_> {
    /// Hands the content on as a tar.
    pub(crate) async fn read(
        &self,
        session: &Session<'_>,
        mut sink: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let argv = ["tar", "-C", &self.spec.path, "--exclude=./lost+found", "-cf", "-", "."];
        let (mut sender, receiver) = self.tar(&argv, session).await?;
        sender.send(&Frame::Bytes(Channel::Stdin, Vec::new().into())).await;
        self.receive("read", receiver, &mut sink).await
    }

    /// Unpacks a tar; `pieces` gives the bytes by number, `None` after the last. A component that was made just now may
    /// have to wait until the controller made its volumes.
    pub(crate) async fn write(
        &self,
        session: &Session<'_>,
        pieces: impl Fn(usize) -> Result<Option<Vec<u8>>, Failure>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.write_once(session, &pieces).await {
                Err(failure) if failure.body.code == REFUSED && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                end => return end,
            }
        }
    }

    async fn write_once(
        &self,
        session: &Session<'_>,
        pieces: &impl Fn(usize) -> Result<Option<Vec<u8>>, Failure>,
    ) -> Result<(), Failure> {
        let argv = ["tar", "-C", &self.spec.path, "-xpf", "-"];
        let (mut sender, receiver) = self.tar(&argv, session).await?;
        let sending = async {
            let mut number = 0;
            while let Some(piece) = pieces(number)? {
                number += 1;
                for message in piece.chunks(MESSAGE) {
                    if !sender.send(&Frame::Bytes(Channel::Stdin, message.to_vec().into())).await {
                        return std::future::pending::<Result<Infallible, Failure>>().await;
                    }
                }
            }
            sender.send(&Frame::Bytes(Channel::Stdin, Vec::new().into())).await;
            // The connection stays until the program ended.
            std::future::pending().await
        };
        let mut nothing = |_: &[u8]| -> Result<(), Failure> { Ok(()) };
        tokio::select! {
            failed = sending => match failed { Ok(never) => match never {}, Err(failure) => Err(failure) },
            end = self.receive("write", receiver, &mut nothing) => end,
        }
    }

    async fn tar(&self, argv: &[&str], session: &Session<'_>) -> Result<(ExecSender, ExecReceiver), Failure> {
        let argv: Vec<String> = argv.iter().map(|it| (*it).to_owned()).collect();
        let call = ExecCall {
            tenant: &session.tenant,
            name: self.component,
            one_off: true,
            argv: &argv,
            terminal: None,
            input: true,
            instance: None,
            place: self.place,
        };
        Ok(session.client.exec(&call).await?)
    }

    async fn receive(
        &self,
        step: &str,
        mut receiver: ExecReceiver,
        sink: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut errors = Vec::new();
        while let Some(frame) = receiver.next().await {
            match frame? {
                Frame::Bytes(Channel::Stdout, bytes) => sink(&bytes)?,
                Frame::Bytes(_, bytes) => {
                    errors.extend_from_slice(&bytes);
                    errors.drain(..errors.len().saturating_sub(ERRORS));
                }
                Frame::Control(ExecControl::Exit { status: 0 }) => return Ok(()),
                Frame::Control(ExecControl::Exit { status }) => {
                    let said = String::from_utf8_lossy(&errors);
                    return Err(self.failed(step, &format!("`tar` ended with {status}: {}", said.trim()), status));
                }
                Frame::Control(ExecControl::Error(body)) => {
                    let mut failure = self.failed(step, &body.message, 1);
                    failure.body.code = body.code;
                    return Err(failure);
                }
                Frame::Control(ExecControl::Resize { .. }) => {}
            }
        }
        Err(self.failed(step, "the connection ended before `tar` did", 1))
    }

    fn failed(&self, step: &str, why: &str, status: i32) -> Failure {
        let (application, component) = self.component;
        let place = if self.place > 0 { format!(" of place {}", self.place) } else { String::new() };
        let message =
            format!("failed to {step} volume `{}`{place} of `{application}/{component}`: {why}", self.spec.name);
        let advice = if status == 127 {
            "its image needs `tar` for that; `--without-volumes` leaves the content out, to be copied by `arco run … -i`"
        } else {
            "mend that and run the command again: what is done is not done twice"
        };
        Failure::new(exit::FAILED, "volume_failed", message, advice)
    }
}
