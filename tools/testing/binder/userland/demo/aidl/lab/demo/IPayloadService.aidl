// SPDX-License-Identifier: GPL-2.0

package lab.demo;

import lab.demo.Payload;
import lab.demo.Tally;

interface IPayloadService {
    /** Checks the payload and sends it back. */
    Payload echo(in Payload payload);

    /** Checks the payload. While the service is paused, it waits in the kernel's buffer. */
    oneway void post(in Payload payload);

    /** Holds back the handling of post() until resume(). */
    void pause();
    void resume();

    Tally tally();
}
