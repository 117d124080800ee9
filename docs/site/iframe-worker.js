// Browsers run no worker from a file on disk. There, the search runs in a hidden frame that answers as a worker would.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc =
        `<script>window.postMessage = (data) => parent.postMessage(data, "*");</script><script src="${new URL(url, location)}"></script>`;
      this.frame.addEventListener("load", () => {
        for (const data of this.waiting) this.tell(data);
        this.waiting = null;
      });
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      });
      document.documentElement.append(this.frame);
    }

    tell(data) {
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.tell(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
