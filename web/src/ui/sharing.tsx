import { useState } from "preact/hooks";
import { makeLinks, messageOf, setPublic } from "../core/api";
import type { Scene, SignedLinks } from "../core/types";
import { Notice } from "./notice";

interface Props {
  scene: Scene;
  onSaved: (scene: Scene) => void;
}

/** Who else may see the scene: everybody, or whoever gets a link. */
export function Sharing({ scene, onSaved }: Props) {
  const [made, setMade] = useState<SignedLinks | null>(null);
  const [error, setError] = useState<string | null>(null);
  const run = <T,>(call: Promise<T>, then: (value: T) => void) => {
    call.then(
      (value) => {
        setError(null);
        then(value);
      },
      (reason: unknown) => setError(messageOf(reason)),
    );
  };
  return (
    <section class="sharing">
      <h2>Sharing</h2>
      <label>
        <input
          type="checkbox"
          checked={scene.public}
          onChange={(event) => run(setPublic(scene.id, event.currentTarget.checked), onSaved)}
        />{" "}
        Anybody may see this scene, without a key
      </label>
      <button class="button" onClick={() => run(makeLinks(scene.id), setMade)}>
        Make a link for viewers
      </button>
      {made !== null && (
        <label>
          Works without a key until {new Date(made.expires_at).toLocaleString()}
          <input
            readOnly
            value={made.links.iiif ?? made.links.tiles3d}
            onFocus={(event) => event.currentTarget.select()}
          />
        </label>
      )}
      {error !== null && <Notice message={error} />}
    </section>
  );
}
